"""``fedalign status``: what it prints, once and until the end."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedalign.errors import RunFailed, UserError
from fedalign.federation.observer import PhasePlan, RoundReport
from fedalign.metrics.record import Metric
from fedalign.report import status_watch
from fedalign.report.heartbeat import StatusFile
from fedalign.report.status_watch import show_status

HEADLINE = "unseen/alignment_score"


def screen(*, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), width=200, force_terminal=terminal, color_system=None, _environ={})


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


class Writer:
    """A run that goes on as the test says."""

    def __init__(self, path: Path) -> None:
        self.status = StatusFile(path / "status.json", HEADLINE)
        self.status.run_started([PhasePlan("prior", 1), PhasePlan("gpo", 3)], None)
        self.status._write()

    def round(self, number: int, *, failed: int = 0) -> None:
        epsilon = Metric("gpo", number, "server", None, "epsilon", 0.5 * number, 1.0)
        self.status.round_ended(RoundReport("gpo", number, 8, failed, 60.0, (epsilon,)))
        self.status._write()


@pytest.fixture
def path(make_run: Callable[..., Path]) -> Path:
    path = make_run("[bold]run", settings={"privacy": {"epsilon": 8.0, "delta": 1e-5}})
    (path / "summary.json").rename(path / "kept.json")
    return path


def end(path: Path, writer: Writer, state: Any = "completed") -> None:
    (path / "kept.json").rename(path / "summary.json")
    writer.status.close(state, None)


def test_one_run_is_told_in_full(path: Path) -> None:
    writer = Writer(path)
    waiting, console = screen(), screen()
    show_status(waiting, [path], watch=False, as_json=False)
    assert "progress: waiting for nodes" in shown(waiting)
    writer.round(2, failed=1)
    place = path / "checkpoints" / "newest"
    place.mkdir(parents=True)
    (place / "checkpoint.json").write_text('{"phase": 1, "round": 1}')
    (path / "logs").mkdir()
    show_status(console, [path], watch=False, as_json=False)
    lines = shown(console).splitlines()
    assert lines[0] == f"{path}: running"
    assert "progress: phase 2 of 2: gpo round 2 of 3, 8 clients (1 failed)" in lines
    assert "privacy: epsilon 1 of 8 at delta 1e-05" in lines
    assert "checkpoint newest: gpo round 1" in lines
    assert f"logs: {path / 'logs'}" in lines
    # Round 0 to 2 of 3 took 60 s, and the prior's round is still to come.
    assert any(line.startswith("time: ") and line.endswith("3 min left") for line in lines)
    assert any("alignment_score_worst" in line and "0.7400" in line for line in lines)


def test_several_runs_are_a_line_each(path: Path, make_run: Callable[..., Path]) -> None:
    Writer(path).round(2)
    other, console = make_run("other", reason="RunFailed:\n no luck"), screen()
    show_status(console, [path, other], watch=False, as_json=False)
    first, second = shown(console).splitlines()
    expected = f"{path}: running, phase 2 of 2: gpo round 2 of 3, 8 clients, {HEADLINE} 0.7500, ε 1, 3 min left"
    assert first == expected
    assert second == f"{other}: failed, RunFailed: no luck"


def test_json_is_an_object_for_one_and_a_list_for_several(path: Path) -> None:
    Writer(path)
    one, two = screen(), screen()
    show_status(one, [path], watch=False, as_json=True)
    show_status(two, [path, path], watch=False, as_json=True)
    assert json.loads(shown(one))["state"] == "running"
    assert [each["state"] for each in json.loads(shown(two))] == ["running", "running"]


@pytest.mark.parametrize(("terminal", "as_json"), [(False, False), (False, True), (True, False)])
def test_watching_follows_a_run_to_its_end(
    path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool, as_json: bool
) -> None:
    writer = Writer(path)
    steps = iter([lambda: writer.round(1), lambda: None, lambda: writer.round(2), lambda: end(path, writer)])
    monkeypatch.setattr(status_watch.time, "sleep", lambda seconds: next(steps)())
    console = screen(terminal=terminal)
    show_status(console, [path], watch=True, as_json=as_json)
    if as_json:
        told = [json.loads(line) for line in shown(console).splitlines()]
        assert [(each["state"], each["round"]) for each in told] == [
            ("running", 0), ("running", 1), ("running", 2), ("completed", 2),
        ]  # fmt: skip
    elif terminal:
        assert "gpo round 1 of 3" in shown(console) and ": completed" in shown(console)
    else:
        assert [line.rpartition(": ")[0] != "" for line in shown(console).splitlines()] == [True] * 4
        assert shown(console).splitlines()[-1].startswith(f"{path}: completed, phase 2 of 2: gpo round 2 of 3")


def test_watching_a_run_that_ends_badly_is_a_failure(path: Path, make_run: Callable[..., Path]) -> None:
    end(path, Writer(path))
    broken = make_run("broken", reason="RunFailed: no luck")
    with pytest.raises(RunFailed, match=r"broken: failed, RunFailed: no luck$"):
        show_status(screen(), [path, broken], watch=True, as_json=False)


def test_without_a_directory_it_is_the_newest_under_outputs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="outputs: no run in there"):
        show_status(screen(), [], watch=False, as_json=False)
    Writer(path)
    (tmp_path / "runs").rename("outputs")
    console = screen()
    show_status(console, [], watch=False, as_json=False)
    assert shown(console).startswith("outputs/[bold]run: running")
