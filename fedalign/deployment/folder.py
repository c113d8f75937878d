"""Writes a planned federation as a directory: a folder for the server, one for each site, one for the operator."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import string
import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

import yaml

from fedalign import __version__
from fedalign.deployment.credentials import SERVICE, KeyPair, make_node_key, make_tls
from fedalign.deployment.plan import Address, Plan, Site, check_free
from fedalign.errors import UserError

SUPERLINK, SITES, OPERATOR, AUTHORITY = "superlink", "sites", "operator", "authority"
"""Folders of a federation's directory."""


class _Template(string.Template):
    """Text with ``%%{name}`` to fill in; a dollar sign is the shell's."""

    delimiter = "%%"
    braceidpattern: ClassVar[str] = "[a-z_]+"


def write_federation(plan: Plan, path: Path) -> None:
    """Write everything that the server, the sites and the operator need.

    It is made in a directory beside ``path`` and renamed when complete.

    Raises
    ------
    UserError
        If ``path`` exists or cannot be written.
    """
    check_free(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise UserError(f"--output={path}: cannot be written ({error.strerror}); choose another") from error
    try:
        _write_all(plan, fresh)
        fresh.chmod(0o755)
        # Fails where something has been put there meanwhile.
        fresh.rename(path)
    except OSError as error:
        raise UserError(f"--output={path}: cannot be written ({error.strerror}); choose another") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _write_all(plan: Plan, root: Path) -> None:
    tls = make_tls(plan.address)
    _write_pair(root / AUTHORITY, "ca.key", "ca.crt", tls.authority)
    filled = _facts(plan)
    _write_superlink(root / SUPERLINK, tls.authority.public, tls.server, filled)
    for site in plan.sites:
        key = make_node_key()
        _write_site(root / SITES / site.name, site, tls.authority.public, key, filled)
        _write(root / OPERATOR / "keys" / f"{site.name}.pub", key.public)
    _write_operator(root / OPERATOR, plan, tls.authority.public, filled)
    compose = yaml.safe_dump(_compose(plan), sort_keys=False)
    _write(root / "docker-compose.yaml", _COMPOSE_COMMENT + compose)
    _write(root / "README.md", fill("README.md", filled))


def _facts(plan: Plan) -> dict[str, str]:
    """Return what templates are filled with, but for what differs between sites."""
    return {
        "address": str(plan.address),
        "port": str(plan.address.port),
        "listen": plan.address.listens_on,
        # The server takes orders from its own machine.
        "operator": str(plan.address if plan.address.loopback else Address("127.0.0.1", plan.address.port)),
        "sites": str(len(plan.sites)),
        "names": ", ".join(site.name for site in plan.sites),
        "first": plan.sites[0].name,
        "overrides": shlex.join(plan.overrides) or "(the default run)",
        "version": __version__,
        "environment": _read("environment.sh").rstrip(),
    }


def _write_superlink(folder: Path, authority: bytes, server: KeyPair, filled: Mapping[str, str]) -> None:
    _write(folder / "ca.crt", authority)
    _write_pair(folder, "server.key", "server.crt", server)
    _write(folder / "start.sh", fill("superlink.sh", filled), 0o755)
    _write(folder / "fedalign-superlink.service", fill("superlink.service", filled))
    _write(folder / "Dockerfile", fill("Dockerfile", filled))


def _write_site(folder: Path, site: Site, authority: bytes, key: KeyPair, filled: Mapping[str, str]) -> None:
    filled = {**filled, "site": site.name, "runtime_port": str(site.runtime_port)}
    _write(folder / "ca.crt", authority)
    _write(folder / "node.key", key.private, 0o600)
    _write(folder / "node.toml", _NODE_COMMENT + to_toml(site.node_config))
    _write(folder / "start.sh", fill("site.sh", filled), 0o755)
    _write(folder / f"fedalign-site-{site.name}.service", fill("site.service", filled))
    _write(folder / "Dockerfile", fill("Dockerfile", filled))


def _write_operator(folder: Path, plan: Plan, authority: bytes, filled: Mapping[str, str]) -> None:
    _write(folder / "ca.crt", authority)
    for script in ("flower.sh", "register.sh", "run.sh"):
        _write(folder / script, fill(script, filled), 0o755)
    _write(folder / "app" / "pyproject.toml", fill("app.toml", filled))
    run = {"nodes": len(plan.sites), "overrides": shlex.join(plan.overrides)}
    _write(folder / "run.toml", _RUN_COMMENT + to_toml(run))


_COMPOSE_COMMENT = """\
# The whole federation on one machine, each part in a container; FEDALIGN_UID and FEDALIGN_GID own the keys.
"""
_NODE_COMMENT = """\
# This site's node configuration; paths may be relative to this folder.
# data-path: the site's own data. partition-id, num-partitions: its share of data that all sites see.
# model-path: a directory of models and encoders that a run may name by path; none if it is not given.
# state-path: what its clients keep between rounds, for a run that is resumed.
# client-prefix: begins its clients' names, so that they differ from other sites'.
"""
_RUN_COMMENT = "# The run: sites to wait for, and overrides as fedalign run takes them.\n"


_DOCKER_NETWORKS = "127.0.0.0/8 172.16.0.0/12 192.168.0.0/16"


def _compose(plan: Plan) -> dict[str, Any]:
    port = plan.address.port
    published = f"127.0.0.1:{port}:{port}" if plan.address.loopback else f"{port}:{port}"
    common = {"user": "${FEDALIGN_UID:-1000}:${FEDALIGN_GID:-1000}", "restart": "unless-stopped"}
    services: dict[str, Any] = {
        SERVICE: {
            "build": f"./{SUPERLINK}",
            # The operator's scripts reach it through Docker's own network.
            "environment": {"FEDALIGN_LISTEN": "0.0.0.0", "FEDALIGN_OPERATORS": _DOCKER_NETWORKS},
            "volumes": [f"./{SUPERLINK}:/federation"],
            "ports": [published],
            **common,
        }
    }
    for site in plan.sites:
        services[f"site-{site.name}"] = {
            "build": f"./{SITES}/{site.name}",
            "environment": {"FEDALIGN_SUPERLINK": f"{SERVICE}:{port}"},
            "volumes": [f"./{SITES}/{site.name}:/federation"],
            **common,
        }
    return {"services": services}


def to_toml(values: Mapping[str, Any]) -> str:
    """Return flat values as TOML; a JSON string is a TOML string."""
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


def fill(name: str, filled: Mapping[str, str]) -> str:
    """Return a template's text with its gaps filled in."""
    return _Template(_read(name)).substitute(filled)


def _read(name: str) -> str:
    return (resources.files(__package__) / "templates" / name).read_text(encoding="utf-8")


def _write_pair(folder: Path, private: str, public: str, pair: KeyPair) -> None:
    _write(folder / private, pair.private, 0o600)
    _write(folder / public, pair.public)


def _write(path: Path, content: bytes | str, mode: int = 0o644) -> None:
    """Write a new file that never, not even for a moment, has more rights than ``mode``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as opened:
        opened.write(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)
