"""How a run stands, judged from its directory: what each mixture of files and processes means."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedalign.errors import UserError
from fedalign.federation.observer import PhasePlan, RoundReport
from fedalign.metrics.record import Metric
from fedalign.report.heartbeat import StatusFile
from fedalign.report.liveness import this_process
from fedalign.report.run_status import SILENT_AFTER_S, newest_run, read_status

HEADLINE = "unseen/alignment_score"


def beat(path: Path, *, state: str = "running", **changes: Any) -> None:
    """Write the status of a run in its third of five rounds, whose process is this one."""
    status = StatusFile(path / "status.json", HEADLINE)
    status.run_started([PhasePlan("gpo", 5)], None)
    metrics = (
        Metric("gpo", 3, "eval", None, HEADLINE, 0.7, 1.0),
        Metric("gpo", 3, "server", None, "epsilon", 1.5, 1.0),
    )
    status.round_ended(RoundReport("gpo", 3, 8, 1, 2.0, metrics))
    status._write()
    if state != "running":
        status.close(state, None)  # type: ignore[arg-type]
    content = json.loads((path / "status.json").read_text())
    writer = changes.pop("writer", None)
    if writer is not None:
        content["writer"] = vars(writer)
    (path / "status.json").write_text(json.dumps({**content, **changes}))


def dead_process() -> Any:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return replace(this_process(), pid=child.pid, process_started=None)


@pytest.fixture
def going(make_run: Callable[..., Path]) -> Path:
    """Make a run that has not ended."""
    path = make_run("run")
    (path / "summary.json").unlink()
    return path


def save_checkpoint(path: Path, name: str, phase: int, number: int) -> None:
    place = path / "checkpoints" / name
    place.mkdir(parents=True)
    (place / "checkpoint.json").write_text(json.dumps({"phase": phase, "round": number}))


def test_a_run_whose_process_is_there_is_running(going: Path) -> None:
    beat(going)
    found = read_status(going)
    assert (found.state, found.reason, found.ended, found.resume) == ("running", None, False, None)
    assert (found.method, found.data, found.seed, found.epsilon) == ("pluralllm", "synthetic_survey", 1, 1.5)
    assert found.metrics[HEADLINE] == 0.75 and "epsilon" not in found.metrics
    assert found.silence_s is not None and found.silence_s < 60


def test_a_run_whose_process_is_gone_is_dead_and_says_how_to_go_on(going: Path) -> None:
    beat(going, writer=dead_process())
    found = read_status(going)
    assert (found.state, found.ended, found.resume) == ("dead", True, None)
    assert found.reason is not None and "is gone and left no outcome" in found.reason
    save_checkpoint(going, "newest", 0, 2)
    save_checkpoint(going, ".best.old", 0, 1)
    found = read_status(going)
    assert found.checkpoints == {"newest": ("gpo", 2), "best": ("gpo", 1)}
    assert found.resume == f"fedalign run resume={going}"


@pytest.mark.parametrize("elsewhere", [True, False])
def test_a_process_that_says_nothing_for_long_and_cannot_be_seen_or_hangs_is_silent(
    going: Path, elsewhere: bool
) -> None:
    beat(going, writer=replace(this_process(), host="site-3") if elsewhere else this_process())
    now = datetime.datetime.now(datetime.UTC)
    assert read_status(going, now).state == "running"
    later = read_status(going, now + datetime.timedelta(seconds=SILENT_AFTER_S + 1))
    assert (later.state, later.ended) == ("silent", False)
    assert later.reason is not None and "nothing was heard" in later.reason


@pytest.mark.parametrize(("reason", "state"), [(None, "completed"), ("RunFailed: no luck", "failed")])
def test_a_run_that_ended_is_what_its_summary_says(
    make_run: Callable[..., Path], guarantee: dict[str, Any], reason: str | None, state: str
) -> None:
    path = make_run("run", reason=reason, privacy=guarantee)
    before = read_status(path)
    beat(path, state=state, writer=dead_process())
    for found in (before, read_status(path)):
        assert (found.state, found.reason) == (state, reason)
        assert (found.epsilon, found.delta) == (3.25, 1e-5)
        assert found.metrics["initial/alignment_score"] == pytest.approx(0.69)


def test_a_full_disk_at_the_end_hides_no_outcome(make_run: Callable[..., Path]) -> None:
    path = make_run("run")
    beat(path, writer=dead_process())
    os.utime(path / "status.json", (1, 1))
    assert read_status(path).state == "completed"


def test_a_run_that_was_resumed_and_then_killed_is_dead_whatever_it_had_come_to(make_run: Callable[..., Path]) -> None:
    path = make_run("run", reason="KeyboardInterrupt")
    os.utime(path / "summary.json", (1, 1))
    beat(path)
    assert read_status(path).state == "running"
    beat(path, writer=dead_process())
    assert read_status(path).state == "dead"


def test_a_run_that_ends_between_two_looks_is_not_dead(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_run("run")
    os.utime(path / "summary.json", (1, 1))
    beat(path)

    def ends(writer: Any) -> bool:
        beat(path, state="completed")
        return True

    monkeypatch.setattr("fedalign.report.run_status.is_gone", ends)
    assert read_status(path).state == "completed"


def test_a_run_without_status_and_outcome_is_unknown(going: Path) -> None:
    found = read_status(going)
    assert (found.state, found.ended) == ("unknown", True)
    assert found.to_json()["phase"] is None


def test_the_json_holds_no_object_of_ours(going: Path) -> None:
    (going / "logs").mkdir()
    beat(going)
    told = json.loads(json.dumps(read_status(going).to_json(), allow_nan=False))
    assert (told["state"], told["round"], told["rounds"], told["clients_failed"]) == ("running", 3, 5, 1)
    assert told["writer"]["pid"] == os.getpid()
    assert told["logs"] == str(going / "logs")


def test_the_newest_run_is_the_one_that_was_written_to_last(make_run: Callable[..., Path], tmp_path: Path) -> None:
    old, new = make_run("mean/a"), make_run("sweep/b/0")
    for path, moment in ((old, 1000), (new, 2000)):
        for name in ("config.yaml", "summary.json"):
            os.utime(path / name, (moment, moment))
    assert newest_run(tmp_path / "runs") == new
    beat(old)
    assert newest_run(tmp_path / "runs") == old
    shutil.rmtree(tmp_path / "runs")
    with pytest.raises(UserError, match="no run in there"):
        newest_run(tmp_path / "runs")


def test_what_is_no_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run directory"):
        read_status(tmp_path)
