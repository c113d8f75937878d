"""What the Flower engine does around Flower's runtime; the runtime itself is tried by the laws."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.serverapp import ServerApp

from fedalign.engines.flower import Flower
from fedalign.errors import RunFailed, UserError
from fedalign.federation.site import Site

ENGINE = Flower("flower", threads=1, workers=3, gpus_per_worker=0.25)


def no_site(config: str, node_config: object) -> Site:
    raise AssertionError("no node is started")


def run_with(simulation: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("flwr.simulation.run_simulation", simulation)
    ENGINE.run(ServerApp(), no_site, 6, tmp_path)


def test_every_client_is_a_node() -> None:
    assert [ENGINE.nodes(clients) for clients in (1, 40)] == [1, 40]


def test_workers_and_gpu_shares_reach_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told: dict[str, Any] = {}
    run_with(lambda server, client, **options: told.update(options), monkeypatch, tmp_path)
    assert told["num_supernodes"] == 6
    assert told["backend_config"]["client_resources"] == {"num_cpus": 1, "num_gpus": 0.25}
    assert told["backend_config"]["init_args"]["num_cpus"] == 3


def raising(error: Exception, cause: Exception | None = None) -> Callable[..., None]:
    def simulation(*arguments: Any, **options: Any) -> None:
        raise error from cause

    return simulation


def test_an_error_of_the_runtime_is_a_failed_run_with_its_cause(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(RunFailed, match="Flower's simulation runtime failed: no memory left"):
        run_with(raising(RuntimeError("wrapped"), MemoryError("no memory left")), monkeypatch, tmp_path)


@pytest.mark.parametrize("error", [RunFailed("every client failed"), UserError("lower it"), RuntimeError("a bug")])
def test_the_run_s_own_errors_pass_through(error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(type(error), match=str(error)):
        run_with(raising(error), monkeypatch, tmp_path)


def test_without_ray_the_fix_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"engine=flower needs Ray; pip install 'flwr\[simulation\]'"):
        ENGINE.run(ServerApp(), no_site, 6, tmp_path)
