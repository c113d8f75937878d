"""What the Ray engine refuses before anything is started."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.serverapp import ServerApp

from fedalign.engines.ray import Ray
from fedalign.errors import UserError
from fedalign.federation.site import Site
from tests.configs import configured


def settings() -> Ray:
    engine = configured("engine=ray").engine
    assert isinstance(engine, Ray)
    return engine


def no_site(config: str, node_config: object) -> Site:
    raise AssertionError("no worker is started")


def refusal(engine: Ray, tmp_path: Path) -> str:
    with pytest.raises(UserError) as refused:
        engine.run(ServerApp(), no_site, 4, tmp_path)
    return str(refused.value)


def test_one_node_hosts_everybody() -> None:
    assert [settings().nodes(clients) for clients in (1, 10_000)] == [1, 1]


def test_without_ray_the_fix_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert refusal(settings(), tmp_path) == "engine=ray needs Ray; pip install 'flwr[simulation]'"


def test_workers_are_not_promised_cores_that_are_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2})
    said = refusal(replace(settings(), workers=4), tmp_path)
    assert "engine.workers=4" in said
    assert "this machine has 3 cores" in said


def test_a_ray_client_is_told_to_move_to_the_cluster(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    said = refusal(replace(settings(), address="ray://head:10001"), tmp_path)
    assert "engine.address=auto" in said


@pytest.mark.parametrize(
    ("address", "reason"), [("127.0.0.1:9", "refused"), ("local", "auto or host:port"), ("head:x", "auto or host:port")]
)
def test_where_no_ray_is_to_be_found_the_fix_is_named(tmp_path: Path, address: str, reason: str) -> None:
    pytest.importorskip("ray")
    said = refusal(replace(settings(), address=address), tmp_path)
    assert f"engine.address={address}: no Ray to join" in said
    assert reason in said
    assert "ray start --head" in said


@pytest.mark.parametrize("key", ["cpus_per_worker", "gpus_per_worker"])
def test_more_than_one_is_whole(key: str) -> None:
    replace(settings(), **{key: 0.25})
    replace(settings(), **{key: 2.0})
    with pytest.raises(UserError, match=rf"engine.{key}=1.5: .* whole number"):
        replace(settings(), **{key: 1.5})


@pytest.mark.parametrize(
    "change",
    ["workers=0", "cpus_per_worker=-1", "gpus_per_worker=-0.5", "clients_per_call=0", "retries=-1", "start_timeout=0",
     "object_store_mb=10", "cpus_per_worker=.nan"],
)  # fmt: skip
def test_values_out_of_range_are_refused(change: str) -> None:
    with pytest.raises(UserError, match=rf"engine.{change.split('=')[0]}"):
        configured("engine=ray", f"engine.{change}")
