"""Room for workers, and the one directory that a Ray of a run's own has."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from fedalign.engines.ray_cluster import fitting, own_directory


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


def test_directories_of_dead_processes_go_and_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        monkeypatch.setattr(tempfile, "tempdir", place)
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        parent = Path(place)
        for name in (f"fedalign-{ended.pid}-a", f"fedalign-{os.getpid()}-b", "fedalign-x-y", "other"):
            (parent / name).mkdir()
        made = own_directory()
        assert made.parent == parent
        assert sorted(path.name for path in parent.iterdir()) == sorted(
            [f"fedalign-{os.getpid()}-b", "fedalign-x-y", "other", made.name]
        )


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
