"""One federation of a SuperLink and three SuperNodes with TLS and node authentication: runs, and who is refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedalign.deployment.credentials import make_node_key, make_tls
from fedalign.deployment.folder import write_federation
from fedalign.deployment.plan import Address, plan_sites
from fedalign.deployment.process_group import ProcessGroup
from fedalign.deployment.running import RunningFederation, free_ports
from fedalign.errors import RunFailed
from fedalign.report.run_directory import RunDirectory
from fedalign.run import start
from tests.language_models import random_model
from tests.laws.conftest import residuals
from tests.tiny_alignment import ALIGNMENT

from .federation import TINY, Deployed, deployed, state_of, wait_for

pytestmark = pytest.mark.deploy

TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    with deployed(tmp_path_factory.mktemp("deploy")) as found:
        yield found
    assert [pid for process in found.running.processes.values() for pid in process.members()] == []


def test_pluralllm_ends_with_the_state_of_a_run_in_process(federation: Deployed, tmp_path: Path) -> None:
    code, told = federation.running.ask("run.sh")
    assert code == 0, told
    here = start([*TINY, f"output={tmp_path / 'here'}"])
    largest, mean = residuals(state_of(here.directory), state_of(federation.run))
    assert largest <= TOLERANCE
    assert mean <= TOLERANCE
    there = RunDirectory.open(federation.run).read_summary()
    assert there.status == "completed"
    assert there.metrics == pytest.approx(here.summary.metrics, abs=1e-5)
    assert f"the run is in {federation.run}" in told
    assert "gpo: round 2 of 2" in told
    assert "3 of 3 clients" in told


def test_a_language_model_is_fine_tuned_to_the_state_of_a_run_in_process(federation: Deployed, tmp_path: Path) -> None:
    overrides = (
        "method=dprlhf", *ALIGNMENT, "federation.rounds=0", "method.sft.rounds=2", "federation.evaluate_every=9",
        "federation.checkpoint_every=9", f"model.model={random_model('gpt2', tmp_path / 'model')}",
    )  # fmt: skip
    code, told = federation.running.ask("run.sh", *overrides, f"output={tmp_path / 'there'}")
    assert code == 0, told
    here = start([*overrides, f"output={tmp_path / 'here'}"])
    largest, mean = residuals(state_of(here.directory, "sft"), state_of(tmp_path / "there", "sft"))
    assert largest <= TOLERANCE
    assert mean <= TOLERANCE


def test_private_keys_are_in_their_own_folders_only(federation: Deployed) -> None:
    root = federation.running.root
    keys = {path.relative_to(root).as_posix(): path for path in root.rglob("*.key")}
    sites = {f"sites/{site.name}/node.key" for site in federation.plan.sites}
    assert set(keys) == {"authority/ca.key", "superlink/server.key", *sites}
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in keys.values())


def supernode(federation: Deployed, folder: Path, *options: str) -> tuple[int | None, str]:
    """Start a SuperNode that is to be refused; return its exit code, if it ended, and what it wrote."""
    (port,) = free_ports(1)
    program = Path(federation.running.environment["FEDALIGN_BIN"]) / "flower-supernode"
    command = [str(program), "--superlink", str(federation.plan.address), "--port", str(port), "--max-retries", "1"]
    environment = {**federation.running.environment, "FLWR_HOME": str(folder), "FLWR_TELEMETRY_ENABLED": "0"}
    # It starts programs of its own by their names, as a site's start.sh lets it.
    environment["PATH"] = f"{program.parent}{os.pathsep}{environment.get('PATH', os.defpath)}"
    process = ProcessGroup([*command, *options], folder / "log", environment)
    try:
        wait_for(lambda: process.code is not None, "the end of a SuperNode that is refused")
        return process.code, (folder / "log").read_text()
    finally:
        process.kill()


def trusted(federation: Deployed) -> tuple[str, str]:
    return "--root-certificates", str(federation.running.root / "operator" / "ca.crt")


def test_a_node_without_a_key_is_refused(federation: Deployed, tmp_path: Path) -> None:
    code, told = supernode(federation, tmp_path, *trusted(federation))
    assert code not in (0, None)
    assert "2001" in told
    assert "[/v1/fleet/register-node][ApiError:2001]" in federation.log("superlink")


def test_a_node_with_a_key_that_nobody_registered_is_refused(federation: Deployed, tmp_path: Path) -> None:
    key = tmp_path / "other.key"
    key.write_bytes(make_node_key().private)
    code, told = supernode(federation, tmp_path, *trusted(federation), "--auth-supernode-private-key", str(key))
    assert code not in (0, None)
    assert "2004" in told
    assert "ApiError:2004" in federation.log("superlink")


def test_a_server_with_a_certificate_of_another_authority_is_refused(federation: Deployed, tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_bytes(make_tls(Address("127.0.0.1", 1)).authority.public)
    key = federation.running.root / "sites" / "site-1" / "node.key"
    code, told = supernode(
        federation, tmp_path, "--root-certificates", str(tmp_path / "ca.crt"), "--auth-supernode-private-key", str(key)
    )
    assert code not in (0, None)
    assert "certificate" in told.lower()


def test_a_client_without_tls_is_refused(federation: Deployed, tmp_path: Path) -> None:
    code, told = supernode(federation, tmp_path, "--insecure")
    assert code not in (0, None)
    # The server ends the connection before anything is said; the node's log has why, and that it had no answer.
    assert "Starting insecure channel" in told
    assert "Failed to initialize the connection to the SuperLink" in told


def test_keys_are_taken_from_operators_only(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    plan = plan_sites(TINY, ["north"], Address("127.0.0.1", port))
    write_federation(plan, tmp_path / "f")
    with RunningFederation(tmp_path / "f", plan.address, {"FEDALIGN_OPERATORS": "10.99.0.0/16"}) as running:
        running.start_superlink()
        with pytest.raises(RunFailed, match="the sites' keys cannot be registered"):
            running.register()
        assert "/v1/control/register-node: refused to 127.0.0.1" in running.log("superlink")
