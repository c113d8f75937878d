"""``flwr run .``: the project as a Flower app, with Flower's own local SuperLink and simulation."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedalign.deployment.process_group import ProcessGroup
from fedalign.deployment.running import free_ports, same_fedalign
from fedalign.run import start
from tests.laws.conftest import residuals

from .federation import TINY, state_of, wait_for

pytestmark = [pytest.mark.deploy, pytest.mark.slow]


def test_the_checkout_runs_as_a_flower_app(root: Path, tmp_path: Path) -> None:
    control, port = free_ports(2)
    environment = {
        **os.environ,
        **same_fedalign(),
        "FLWR_HOME": str(tmp_path / "flower"),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(port),
        "FLWR_LOCAL_CONTROL_API_PORT": str(control),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    }
    # The bundle must do without the checkout.
    environment.pop("PYTHONPATH")
    environment["PATH"] = f"{environment['FEDALIGN_BIN']}{os.pathsep}{environment['PATH']}"
    overrides = " ".join([*TINY, f"output={tmp_path / 'run'}"])
    command = [
        *("flwr", "run", str(root), "--stream", "--run-config", f'overrides="{overrides}" nodes=5'),
        *("--federation-config", "num-supernodes=5 client-resources-num-cpus=1"),
    ]
    process = ProcessGroup(command, tmp_path / "log", environment)
    try:
        wait_for(lambda: process.code is not None, "the end of flwr run")
        wait_for(lambda: (tmp_path / "run" / "report.html").exists() or process.code != 0, "the run's report")
    finally:
        process.kill()
    told = (tmp_path / "log").read_text()
    print(told)
    assert process.code == 0
    assert f"the run is in {tmp_path / 'run'}" in told
    here = start([*TINY, f"output={tmp_path / 'here'}"])
    assert residuals(state_of(here.directory), state_of(tmp_path / "run"))[0] <= 1e-6
