"""status.json: what a run says of itself while it goes on, and that a full disk is no reason to end."""

from __future__ import annotations

import errno
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import pytest

from fedalign.errors import UserError
from fedalign.federation.observer import PhasePlan, RoundReport
from fedalign.metrics.record import Metric
from fedalign.report import heartbeat
from fedalign.report.heartbeat import Heartbeat, StatusFile
from fedalign.report.run_directory import RunDirectory

HEADLINE = "unseen/accuracy"
PLAN = [PhasePlan("prior", 1), PhasePlan("gpo", 4)]


def report(phase: str, number: int, *, seconds: float = 2.0, failed: int = 0, **values: float) -> RoundReport:
    names = {"score": HEADLINE, "epsilon": "epsilon"}
    metrics = [Metric(phase, number, "eval", None, names[key], value, 1.0) for key, value in values.items()]
    metrics.append(Metric(phase, number, "eval", "Kenya", HEADLINE, 0.1, 1.0))
    return RoundReport(phase, number, 8, failed, seconds, tuple(metrics))


def read(path: Path) -> Heartbeat:
    found = RunDirectory(path).read_status()
    assert found is not None
    return found


def test_tells_how_far_the_run_is(tmp_path: Path) -> None:
    status = StatusFile(tmp_path / "status.json", HEADLINE)
    status.begin()
    first = read(tmp_path)
    assert (first.state, first.phase, first.phases, first.writer.pid) == ("running", None, (), os.getpid())
    status.run_started(PLAN, None)
    status.round_ended(report("prior", 1))
    status.round_ended(report("gpo", 1, score=0.5, epsilon=1.5))
    status.round_ended(report("gpo", 2, failed=3))
    status.close("completed", None)
    last = read(tmp_path)
    assert (last.phase, last.round, last.rounds) == ("gpo", 2, 4)
    assert [(phase.name, phase.done, phase.rounds) for phase in last.phases] == [("prior", 1, 1), ("gpo", 2, 4)]
    assert (last.clients_asked, last.clients_failed) == (8, 3)
    # Kept from the round before, and never a group's.
    assert (last.headline, last.headline_value, last.epsilon) == (HEADLINE, 0.5, 1.5)
    assert (last.state, last.reason, last.eta_s) == ("completed", None, None)
    assert last.started == first.started and last.updated_at >= first.updated_at and last.elapsed_s > 0


def test_renews_the_file_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "_PAUSE_S", 0.01)
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.02)
    status = StatusFile(tmp_path / "status.json", HEADLINE)
    status.begin()
    first = read(tmp_path)
    status.run_started(PLAN, ("gpo", 2))
    status.round_ended(report("gpo", 3, seconds=7.0))
    wait_for(lambda: read(tmp_path).round == 3)
    assert read(tmp_path).eta_s == 7.0
    assert read(tmp_path).resumed_after == ("gpo", 2)
    seen = read(tmp_path).updated
    wait_for(lambda: read(tmp_path).updated > seen > first.updated)
    status.run_ended()
    stopped = read(tmp_path)
    time.sleep(0.1)
    assert read(tmp_path) == stopped


def wait_for(condition: Any, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_full_disk_is_told_once_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    status = StatusFile(tmp_path / "status.json", HEADLINE)
    status.begin()
    monkeypatch.setattr(heartbeat, "write_json_atomic", full)
    status.run_started(PLAN, None)
    status.round_ended(report("prior", 1))
    with caplog.at_level(logging.WARNING):
        status.close("completed", None)
        status.close("completed", None)
    (record,) = caplog.records
    assert "No space left on device" in record.getMessage() and "the run goes on" in record.getMessage()
    assert read(tmp_path).state == "running"


def test_a_directory_that_was_taken_away_stays_away(tmp_path: Path) -> None:
    StatusFile(tmp_path / "gone" / "status.json", HEADLINE).close("completed", None)
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_are_none_are_left_out(tmp_path: Path) -> None:
    status = StatusFile(tmp_path / "status.json", HEADLINE)
    status.run_started(PLAN, None)
    status.round_ended(report("gpo", 1, score=float("nan"), epsilon=float("inf")))
    status.close("failed", "UserError: diverged")
    found = read(tmp_path)
    assert (found.headline_value, found.epsilon, found.reason) == (None, None, "UserError: diverged")


@pytest.mark.parametrize(
    ("change", "word"),
    [({"round": "many"}, "round"), ({"updated": "yesterday"}, "updated"), ({"writer": {}}, "writer.host")],
)
def test_a_broken_file_is_one_line(tmp_path: Path, change: dict[str, Any], word: str) -> None:
    StatusFile(tmp_path / "status.json", HEADLINE).close("completed", None)
    content = json.loads((tmp_path / "status.json").read_text())
    (tmp_path / "status.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(UserError, match=rf"status\.json: {word}") as error:
        RunDirectory(tmp_path).read_status()
    assert "\n" not in str(error.value)
