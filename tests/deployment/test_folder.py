"""The directory of a federation: who gets what, and that it is there as a whole or not at all."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from fedalign import __version__
from fedalign.app import client, server
from fedalign.deployment import folder as module
from fedalign.deployment.folder import write_federation
from fedalign.deployment.plan import Address, Plan, plan_sites
from fedalign.errors import UserError

OVERRIDES = ("method.prior=none", "federation.rounds=2", "name='a b\"c'")


def planned(address: str = "fed.example.org:8443") -> Plan:
    return plan_sites(OVERRIDES, ["north", "south"], Address.of(address))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("deployment") / "federation"
    write_federation(planned(), path)
    return path


def test_everybody_has_what_is_theirs_and_nothing_else(written: Path) -> None:
    files = {path.relative_to(written).as_posix() for path in written.rglob("*") if path.is_file()}
    site = {"ca.crt", "node.key", "node.toml", "start.sh", "Dockerfile"}
    assert files == {
        *("README.md", "docker-compose.yaml", "authority/ca.key", "authority/ca.crt"),
        *(f"superlink/{name}" for name in ("ca.crt", "server.crt", "server.key", "start.sh", "Dockerfile")),
        "superlink/fedalign-superlink.service",
        *(f"sites/{s}/{name}" for s in ("north", "south") for name in {*site, f"fedalign-site-{s}.service"}),
        *(f"operator/{name}" for name in ("ca.crt", "flower.sh", "register.sh", "run.sh", "run.toml")),
        *("operator/app/pyproject.toml", "operator/keys/north.pub", "operator/keys/south.pub"),
    }


def test_private_keys_are_their_owners_only_and_nowhere_else(written: Path) -> None:
    secrets = {path: path.read_text() for path in written.rglob("*.key")}
    assert len(set(secrets.values())) == 4
    for path, content in secrets.items():
        assert path.stat().st_mode & 0o777 == 0o600
        line = content.splitlines()[2]
        holders = [other for other in written.rglob("*") if other.is_file() and line in other.read_text()]
        assert holders == [path]


def test_every_script_is_one_that_bash_reads(written: Path) -> None:
    scripts = list(written.rglob("*.sh"))
    assert len(scripts) == 6
    for script in scripts:
        assert script.stat().st_mode & 0o111
        assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
        assert "%%" not in script.read_text()


def test_the_server_asks_for_keys_and_certificates_and_keeps_its_state(written: Path) -> None:
    script = (written / "superlink" / "start.sh").read_text()
    assert "-m fedalign.deployment.superlink" in script
    for option in ("--enable-supernode-auth", "--ssl-certfile server.crt", "--database state/superlink.db"):
        assert option in script
    assert '--host "${FEDALIGN_LISTEN:-0.0.0.0}" --port "${FEDALIGN_PORT:-8443}"' in script
    for name in ("superlink", "sites/north", "operator"):
        for told in (path.read_text() for path in (written / name).glob("*.sh") if path.stem in ("start", "flower")):
            assert "FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1" in told
            assert "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1" in told
            assert "--insecure" not in told


def test_orders_go_to_the_server_on_its_own_machine(written: Path) -> None:
    for script in ("flower.sh", "register.sh"):
        assert "${FEDALIGN_SUPERLINK:-127.0.0.1:8443}" in (written / "operator" / script).read_text()
    assert "${FEDALIGN_SUPERLINK:-fed.example.org:8443}" in (written / "sites" / "north" / "start.sh").read_text()


def test_on_loopback_the_server_listens_there_only(tmp_path: Path) -> None:
    write_federation(planned("localhost:8000"), tmp_path / "f")
    assert '"${FEDALIGN_LISTEN:-127.0.0.1}"' in (tmp_path / "f" / "superlink" / "start.sh").read_text()
    compose = yaml.safe_load((tmp_path / "f" / "docker-compose.yaml").read_text())
    assert compose["services"]["superlink"]["ports"] == ["127.0.0.1:8000:8000"]


def test_the_run_is_the_one_that_was_asked_for(written: Path) -> None:
    run = tomllib.loads((written / "operator" / "run.toml").read_text())
    assert run["nodes"] == 2
    assert shlex.split(run["overrides"]) == list(OVERRIDES)


def test_the_app_names_the_installed_fedalign(written: Path) -> None:
    app = tomllib.loads((written / "operator" / "app" / "pyproject.toml").read_text())
    assert app["project"]["version"] == __version__
    assert app["tool"]["flwr"]["app"]["components"] == {
        "serverapp": "fedalign.app:server",
        "clientapp": "fedalign.app:client",
    }
    assert server is not None
    assert client is not None


def test_the_compose_file_names_folders_that_are_there(written: Path) -> None:
    services = yaml.safe_load((written / "docker-compose.yaml").read_text())["services"]
    assert set(services) == {"superlink", "site-north", "site-south"}
    for service in services.values():
        build, volume = written / service["build"], service["volumes"][0].partition(":")[0]
        assert (build / "Dockerfile").is_file()
        assert (written / volume / "start.sh").is_file()
    assert services["site-north"]["environment"] == {"FEDALIGN_SUPERLINK": "superlink:8443"}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_units_are_what_systemd_takes(written: Path, tmp_path: Path) -> None:
    for unit in written.rglob("*.service"):
        # The folders and the user of the real machine are not on this one.
        text = unit.read_text().replace("/opt/fedalign", str(tmp_path)).replace("User=fedalign", "User=root")
        for line in text.splitlines():
            if line.startswith("ExecStart="):
                program = Path(line.removeprefix("ExecStart="))
                program.parent.mkdir(parents=True, exist_ok=True)
                program.write_text("#!/bin/sh\n")
                program.chmod(0o755)
        (tmp_path / unit.name).write_text(text)
        done = subprocess.run(
            ["systemd-analyze", "verify", tmp_path / unit.name], capture_output=True, text=True, check=False
        )
        assert unit.name not in done.stderr, done.stderr


def test_nothing_half_written_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_write_operator", fail)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
        write_federation(planned(), tmp_path / "f")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "mine").write_text("mine")
    with pytest.raises(UserError, match="exists"):
        write_federation(planned(), tmp_path / "f")
    assert [path.name for path in tmp_path.rglob("*")] == ["f", "mine"]
