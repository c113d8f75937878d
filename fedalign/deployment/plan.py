"""What a federation is to be: its sites, the server's address and the run, checked before anything is written."""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedalign.config import RunConfig, parse, resolve
from fedalign.errors import UserError
from fedalign.guarantee import refuse_open_metrics

_SITE = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
RUNTIME_PORT = 9094
"""What a SuperNode opens on loopback for its own processes; Flower's default."""


@dataclass(frozen=True)
class Address:
    """Where the SuperLink is reached.

    Parameters
    ----------
    host : str
        A DNS name or an IP address.
    port : int
    """

    host: str
    port: int

    @classmethod
    def of(cls, text: str) -> Address:
        """Read ``HOST:PORT``; an IPv6 address stands in brackets.

        Raises
        ------
        UserError
            If the host is neither an IP address nor a DNS name, or the port is none.
        """
        host, _, port = text.rpartition(":")
        bare = host.removeprefix("[").removesuffix("]")
        if not (_is_ip(bare) and (":" not in bare or host != bare)) and not _is_name(host):
            raise UserError(
                f"--server-address={text}: {host!r} is no host; give a DNS name or an IP address and a port, as in "
                "server.example.org:8000 or [::1]:8000"
            )
        if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise UserError(
                f"--server-address={text}: {port!r} is no port; give one from 1 to 65535, as in {host}:8000"
            )
        return cls(bare, int(port))

    @property
    def is_ip(self) -> bool:
        """Whether the host is an IP address."""
        return _is_ip(self.host)

    @property
    def loopback(self) -> bool:
        """Whether only processes on the server's own machine can reach it."""
        return ipaddress.ip_address(self.host).is_loopback if self.is_ip else self.host == "localhost"

    @property
    def listens_on(self) -> str:
        """Which of its own addresses the server listens on: loopback only, or all of them."""
        if self.loopback:
            return self.host if self.is_ip else "127.0.0.1"
        return "::" if ":" in self.host else "0.0.0.0"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Site:
    """One site of a federation.

    Parameters
    ----------
    name : str
        Lower-case letters, digits and hyphens: it names a folder, a service and a container.
    node_config : mapping
        What its SuperNode is configured with.
    runtime_port : int
        See ``RUNTIME_PORT``; sites on one machine need different ones.
    """

    name: str
    node_config: Mapping[str, Any] = field(default_factory=dict)
    runtime_port: int = RUNTIME_PORT


@dataclass(frozen=True)
class Plan:
    """A federation that can be written down.

    Parameters
    ----------
    overrides : tuple of str
        Of the run, in Hydra's grammar.
    resolved : mapping
        The run's resolved configuration.
    config : RunConfig
    address : Address
    sites : tuple of Site
    """

    overrides: tuple[str, ...]
    resolved: Mapping[str, Any]
    config: RunConfig
    address: Address
    sites: tuple[Site, ...]


def read_run(overrides: Sequence[str]) -> tuple[dict[str, Any], RunConfig]:
    """Return the resolved and the typed configuration of a run that is to be deployed.

    Raises
    ------
    UserError
        If an override is wrong, or the run may not be deployed.
    """
    if any(override.startswith("resume=") for override in overrides):
        raise UserError("resume=DIR goes on with a run of a federation that is there: ./run.sh resume=DIR")
    resolved = resolve(overrides)
    config = parse(resolved)
    refuse_open_metrics(config)
    return resolved, config


def plan_sites(overrides: Sequence[str], names: Sequence[str], address: Address) -> Plan:
    """Plan a federation of separate machines.

    Where the run has a ``data.path``, every site reads its own file there, and its clients' names begin with its own.
    Otherwise each site hosts its share of the data source's clients.

    Raises
    ------
    UserError
        If a name is malformed or repeated, or the run's configuration is wrong.
    """
    check_names(names)
    resolved, config = read_run(overrides)
    path = resolved["data"].get("path")
    sites = []
    for place, name in enumerate(names):
        share = share_of(place, len(names)) if path is None else {"data-path": str(path), "client-prefix": f"{name}-"}
        # Sites on one machine cannot open the same port.
        port = RUNTIME_PORT + place if address.loopback else RUNTIME_PORT
        sites.append(Site(name, {**share, **STATE}, port))
    return Plan(tuple(overrides), resolved, config, address, tuple(sites))


STATE = {"state-path": "state/clients"}
"""Where a node keeps its clients' memories at a checkpoint, beside its start script."""


def share_of(place: int, places: int) -> dict[str, Any]:
    """Return the node configuration of a site that hosts every so-manieth client of data that all sites see."""
    return {"partition-id": place, "num-partitions": places}


def check_names(names: Sequence[str]) -> None:
    """Refuse names of sites that are malformed or not different.

    Raises
    ------
    UserError
        Naming the name.
    """
    for name, count in Counter(names).items():
        if not _SITE.fullmatch(name):
            raise UserError(
                f"--sites: {name!r} cannot name a site; use lower-case letters, digits and hyphens, 40 at most"
            )
        if count > 1:
            raise UserError(f"--sites: {name!r} is there {count} times; give every site a name of its own")


def check_free(path: Path) -> None:
    """Refuse to write where something is.

    Raises
    ------
    UserError
        If ``path`` exists, or what it would stand in is no directory.
    """
    if path.exists() or path.is_symlink():
        raise UserError(f"--output={path} exists; choose another, keys and certificates are never overwritten")
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    if not existing.is_dir():
        raise UserError(f"--output={path}: {existing} is no directory; choose another")


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_name(host: str) -> bool:
    labels = host.split(".")
    # A name whose last label is a number would be taken for an IP address.
    return len(host) <= 253 and all(map(_LABEL.fullmatch, labels)) and not labels[-1].isdigit()
