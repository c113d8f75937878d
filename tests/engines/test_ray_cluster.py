"""Room for workers, and the one directory that a Ray of a run's own has."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from fedalign.engines.ray_cluster import fitting, own_cluster, own_directory, remove_left_behind
from fedalign.errors import RunFailed


@pytest.mark.parametrize(
    ("cpus", "gpus", "each", "workers"),
    [
        (8.0, 0.0, (1.0, 0.0), 8),
        (8.0, 2.0, (1.0, 0.25), 8),
        (16.0, 2.0, (1.0, 0.25), 8),
        # A share is of one GPU: 0.4 goes twice into each of two, not five times into both.
        (16.0, 2.0, (1.0, 0.4), 4),
        (16.0, 5.0, (1.0, 2.0), 2),
        (2.0, 0.0, (0.5, 0.0), 4),
        (0.3, 0.0, (0.1, 0.0), 3),
        (8.0, 0.0, (1.0, 0.1), 0),
        (8.0, 1.0, (0.0, 0.1), 10),
    ],
)
def test_how_many_workers_fit(cpus: float, gpus: float, each: tuple[float, float], workers: int) -> None:
    assert fitting(cpus, gpus, *each) == workers


def test_directories_of_dead_processes_go_and_others_stay(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    stay = [f"fedalign-{os.getpid()}-b", "fedalign-x-y", "other"]
    for name in (f"fedalign-{ended.pid}-a", *stay):
        (tmp_path / name).mkdir()
    remove_left_behind(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(stay)


def test_the_directory_is_near_the_root_since_paths_of_sockets_are_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 40)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    made = own_directory()
    made.rmdir()
    # What Ray puts below it: a session named by time and process, and a socket of the object store.
    assert len(f"{made}/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store") <= 107


def test_settings_reach_a_ray_of_the_run_s_own_whose_directory_goes_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    told: dict[str, Any] = {}
    monkeypatch.setattr(ray, "init", lambda **options: told.update(options))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with own_cluster(1.5, 0.0, 123):
        place = Path(told["_temp_dir"])
        assert place.is_dir()
        assert (told["num_cpus"], told["num_gpus"], told["object_store_memory"]) == (2, 0, 123 * 2**20)
        assert told["address"] == "local"
    assert not place.exists()
    with own_cluster(1.0, 0.5, 123):
        assert told["num_gpus"] is None


def test_a_ray_that_cannot_start_is_a_failed_run_that_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")

    def fails(**options: Any) -> None:
        told.append(Path(options["_temp_dir"]))
        raise RuntimeError("no port is free\nand more")

    told: list[Path] = []
    monkeypatch.setattr(ray, "init", fails)
    with pytest.raises(RunFailed, match=r"Ray cannot be started: no port is free$"), own_cluster(1.0, 0.0, 123):
        pass
    assert not told[0].exists()


def test_workers_take_what_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    from fedalign.engines.ray_pool import RayPool

    told: list[dict[str, Any]] = []
    actors = MagicMock()
    monkeypatch.setattr(ray, "remote", lambda **options: told.append(options) or actors)
    RayPool(lambda config, node_config: None, 3, 0.5, 0.25, 9.0, 2)  # type: ignore[arg-type]
    assert told == [{"num_cpus": 0.5, "num_gpus": 0.25, "max_restarts": 0}]
    assert actors.return_value.remote.call_count == 3
