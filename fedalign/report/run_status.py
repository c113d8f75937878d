"""How a run stands, judged from its directory alone: running, silent, dead, completed or failed."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fedalign.errors import UserError
from fedalign.federation.checkpoint_place import BEST, NEWEST, progress_at
from fedalign.report.heartbeat import BEAT_S, Heartbeat
from fedalign.report.liveness import is_gone
from fedalign.report.metrics_tail import last_values
from fedalign.report.numbers import duration
from fedalign.report.run_directory import RunDirectory
from fedalign.report.summary import Summary

SILENT_AFTER_S = 12 * BEAT_S
"""A process that cannot be looked at, or hangs, is given so many seconds before it is called silent."""

State = Literal["running", "silent", "dead", "completed", "failed", "unknown"]

_PROGRESS = tuple(f.name for f in dataclasses.fields(Heartbeat) if f.name not in ("state", "reason", "epsilon"))
"""What the JSON takes over as the run said it."""

_DEEPEST = 3
"""Runs lie at most so many levels under outputs/: those of sweeps do."""


@dataclass(frozen=True)
class RunStatus:
    """How a run stands.

    Parameters
    ----------
    directory : Path
    state : {"running", "silent", "dead", "completed", "failed", "unknown"}
        ``dead``: the process that wrote it is gone and left no outcome. ``silent``: it has not been heard of for
        ``SILENT_AFTER_S``, and it cannot be seen from here that it is gone. ``unknown``: it left neither a status
        nor an outcome.
    reason : str or None
        Why it is not well.
    method, data : str
    seed : int
    heartbeat : Heartbeat or None
        What it last said of itself.
    silence_s : float or None
        Seconds since then.
    metrics : mapping from name to last value
    epsilon, delta : float or None
        Spent up to now, where there is a guarantee.
    epsilon_budget : float or None
    checkpoints : mapping from name to (phase, round)
    logs : Path or None
        The directory of its logs.
    """

    directory: Path
    state: State
    reason: str | None
    method: str
    data: str
    seed: int
    heartbeat: Heartbeat | None
    silence_s: float | None
    metrics: Mapping[str, float]
    epsilon: float | None
    delta: float | None
    epsilon_budget: float | None
    checkpoints: Mapping[str, tuple[str, int]]
    logs: Path | None

    @property
    def ended(self) -> bool:
        """Whether nothing more is to be expected."""
        return self.state not in ("running", "silent")

    @property
    def resume(self) -> str | None:
        """The command that goes on with it; None where there is nothing to go on with."""
        if self.state not in ("dead", "failed", "unknown") or NEWEST not in self.checkpoints:
            return None
        return f"fedalign run resume={self.directory}"

    def to_json(self) -> dict[str, Any]:
        """Return what ``fedalign status --json`` prints."""
        beat = None if self.heartbeat is None else dataclasses.asdict(self.heartbeat)
        return {
            "directory": str(self.directory),
            "state": self.state,
            "reason": self.reason,
            "method": self.method,
            "data": self.data,
            "seed": self.seed,
            **{key: None if beat is None else beat[key] for key in _PROGRESS},
            "silence_s": self.silence_s,
            "metrics": dict(self.metrics),
            "epsilon": self.epsilon,
            "delta": self.delta,
            "epsilon_budget": self.epsilon_budget,
            "checkpoints": {
                name: {"phase": phase, "round": number} for name, (phase, number) in self.checkpoints.items()
            },
            "resume": self.resume,
            "logs": None if self.logs is None else str(self.logs),
        }


def read_status(path: Path, now: datetime.datetime | None = None) -> RunStatus:
    """Look at a run.

    Parameters
    ----------
    path : Path
        The run directory.
    now : datetime or None
        The time of the look; None for the clock's.

    Raises
    ------
    UserError
        If ``path`` is no run directory, or a file of it is broken.
    """
    directory = RunDirectory.open(path)
    return assess(directory, directory.read_config(), lambda: last_values(directory.metrics_file), now)


def assess(
    directory: RunDirectory,
    config: Mapping[str, Any],
    last: Callable[[], Mapping[str, float]],
    now: datetime.datetime | None = None,
) -> RunStatus:
    """Judge a run whose configuration and, while it goes on, last metrics the caller has.

    Raises
    ------
    UserError
        If ``status.json`` or ``summary.json`` is broken.
    """
    verdict = _judge(directory, now)
    if verdict.state in ("dead", "silent"):
        # It may have ended between the two looks, at its file and at its process.
        verdict = _judge(directory, now)
    beat, summary = verdict.heartbeat, verdict.summary
    asked = _part(config, "privacy")
    told = None if summary is None else summary.privacy
    return RunStatus(
        directory=directory.path,
        state=verdict.state,
        reason=verdict.reason,
        method=str(_part(config, "method").get("name", "?")),
        data=str(_part(config, "data").get("name", "?")),
        seed=int(config.get("seed", 0)),
        heartbeat=beat,
        silence_s=verdict.silence_s,
        metrics=last() if summary is None else summary.metrics,
        epsilon=told["epsilon"] if told else None if beat is None else beat.epsilon,
        delta=told["delta"] if told else asked.get("delta"),
        epsilon_budget=asked.get("epsilon"),
        checkpoints=dict(_checkpoints(directory, beat)),
        logs=logs if (logs := directory.path / "logs").is_dir() else None,
    )


def newest_run(root: Path) -> Path:
    """Return the run below ``root`` that was written to last.

    Raises
    ------
    UserError
        If there is none.
    """
    found = [path.parent for depth in range(1, _DEEPEST + 1) for path in root.glob("*/" * depth + "config.yaml")]
    if not found:
        raise UserError(f"{root}: no run in there; start one with fedalign run, or give a run's directory")
    return max(found, key=_touched)


def _touched(run: Path) -> float:
    files = [run / name for name in ("status.json", "summary.json", "config.yaml")]
    return max(file.stat().st_mtime for file in files if file.exists())


@dataclass(frozen=True)
class _Verdict:
    """What a run's files and process say together."""

    state: State
    reason: str | None = None
    heartbeat: Heartbeat | None = None
    silence_s: float | None = None
    summary: Summary | None = None


def _judge(directory: RunDirectory, now: datetime.datetime | None) -> _Verdict:
    beat = directory.read_status()
    if beat is None:
        if directory.summary_file.exists():
            return _outcome(directory, None, None)
        return _Verdict("unknown", "it left neither a status.json nor a summary.json")
    moment = datetime.datetime.now(datetime.UTC) if now is None else now
    silence = max(0.0, (moment - beat.updated_at).total_seconds())
    if beat.state != "running":
        return _outcome(directory, beat, silence)
    gone = is_gone(beat.writer)
    if not gone and silence <= SILENT_AFTER_S:
        return _Verdict("running", None, beat, silence)
    if _newer(directory.summary_file, directory.status_file):
        # The disk was full when it came to say that it has ended.
        return _outcome(directory, beat, silence)
    who = f"process {beat.writer.pid} on {beat.writer.host}"
    if gone:
        return _Verdict("dead", f"{who} is gone and left no outcome", beat, silence)
    return _Verdict("silent", f"nothing was heard of {who} for {duration(silence)}", beat, silence)


def _outcome(directory: RunDirectory, beat: Heartbeat | None, silence: float | None) -> _Verdict:
    summary = directory.read_summary()
    return _Verdict(summary.status, summary.reason, beat, silence, summary)


def _newer(file: Path, other: Path) -> bool:
    """Tell whether the outcome was written after the last sign of life: that of a run resumed since is older."""
    return file.exists() and file.stat().st_mtime >= other.stat().st_mtime


def _checkpoints(directory: RunDirectory, beat: Heartbeat | None) -> Iterator[tuple[str, tuple[str, int]]]:
    names = [] if beat is None else [phase.name for phase in beat.phases]
    for name in (NEWEST, BEST):
        place = progress_at(directory.checkpoints, name)
        if place is not None:
            index, number = place
            yield name, (names[index] if index < len(names) else f"phase {index + 1}", number)


def _part(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = config.get(key)
    return part if isinstance(part, Mapping) else {}
