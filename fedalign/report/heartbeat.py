"""status.json: how far a run is and who writes it, renewed while it goes on, for readers in other processes."""

from __future__ import annotations

import dataclasses
import datetime
import logging
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from fedalign.errors import UserError
from fedalign.federation.observer import PhasePlan, RoundReport
from fedalign.report.atomic import write_json_atomic
from fedalign.report.liveness import Writer, this_process
from fedalign.report.pace import Pace

_log = logging.getLogger(__name__)

BEAT_S = 5.0
"""Seconds between two writes in which nothing has happened."""
_PAUSE_S = 0.5
"""Seconds between two looks at whether something has; rounds may be many a second."""


@dataclass(frozen=True)
class PhaseProgress:
    """Rounds done of one phase; the last round number may be below ``rounds`` when a budget ended it."""

    name: str
    done: int
    rounds: int


@dataclass(frozen=True)
class Heartbeat:
    """What ``status.json`` says.

    Parameters
    ----------
    state : {"running", "completed", "failed"}
        ``running`` is what the writer thinks; a reader has to look whether it still does.
    reason : str or None
        Why a failed run failed.
    writer : Writer
    started, updated : str
        When this process began with the run, and when it wrote this; ISO 8601 in UTC.
    phase : str or None
        Phase of the last report; None until nodes have come.
    round, rounds : int
        Rounds done of that phase, and how many it has.
    phases : sequence of PhaseProgress
        All of them, in order.
    clients_asked, clients_failed : int
        In the last round.
    headline : str
        Name of the metric that matters most.
    headline_value, epsilon : float or None
        The last of each; None before the first.
    elapsed_s : float
        Since ``started``.
    eta_s : float or None
        Seconds that the rest takes at the pace of the last rounds, from ``updated`` on.
    resumed_after : (str, int) or None
        Phase and round of the checkpoint that the run went on from.
    """

    state: Literal["running", "completed", "failed"]
    reason: str | None
    writer: Writer
    started: str
    updated: str
    phase: str | None
    round: int
    rounds: int
    phases: tuple[PhaseProgress, ...]
    clients_asked: int
    clients_failed: int
    headline: str
    headline_value: float | None
    epsilon: float | None
    elapsed_s: float
    eta_s: float | None
    resumed_after: tuple[str, int] | None

    @property
    def updated_at(self) -> datetime.datetime:
        """When it was written."""
        return datetime.datetime.fromisoformat(self.updated)

    @classmethod
    def from_json(cls, content: object, source: str) -> Heartbeat:
        """Return the heartbeat of a decoded ``status.json``.

        Raises
        ------
        UserError
            If a key is missing or wrong; the message begins with ``source``.
        """
        try:
            found = TypeAdapter(cls).validate_python(content)
            found.updated_at.astimezone()
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"]) or "the file"
            raise UserError(
                f"{source}: {key}: {first['msg']}; remove the file, it only tells how the run goes"
            ) from error
        except ValueError as error:
            raise UserError(f"{source}: updated: {error}; remove the file, it only tells how the run goes") from error
        return found


class StatusFile:
    """Observer that keeps ``status.json`` fresh from a thread of its own, so that no round waits for a disk.

    It never breaks a run: what cannot be written is logged, once, and left out.

    Parameters
    ----------
    path : Path
    headline : str
        Name of the metric to tell.
    """

    def __init__(self, path: Path, headline: str) -> None:
        self._path = path
        self._began = time.monotonic()
        now = _now()
        self._beat = Heartbeat(
            state="running", reason=None, writer=this_process(), started=now, updated=now, phase=None, round=0,
            rounds=0, phases=(), clients_asked=0, clients_failed=0, headline=headline, headline_value=None,
            epsilon=None, elapsed_s=0.0, eta_s=None, resumed_after=None,
        )  # fmt: skip
        self._pace = Pace((), None)
        self._changed = threading.Event()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._warned = False

    def begin(self) -> None:
        """Write the file for the first time, and from now on again and again."""
        self._write()
        self._thread = threading.Thread(target=self._renew, name="fedalign-status", daemon=True)
        self._thread.start()

    def run_started(self, plan: Sequence[PhasePlan], resumed_after: tuple[str, int] | None) -> None:
        """Take up the plan."""
        self._pace = Pace(plan, resumed_after)
        phases = tuple(PhaseProgress(phase.name, self._pace.done[phase.name], phase.rounds) for phase in plan)
        self._beat = dataclasses.replace(self._beat, phases=phases, resumed_after=resumed_after)
        self._tell(**({} if resumed_after is None else self._place(*resumed_after)))

    def round_ended(self, report: RoundReport) -> None:
        """Take up the round's numbers."""
        self._pace.round_ended(report)
        told = {
            metric.name: metric.value
            for metric in report.metrics
            if metric.group is None and math.isfinite(metric.value)
        }
        before = self._beat
        self._tell(
            clients_asked=report.cohort,
            clients_failed=report.failed,
            headline_value=told.get(before.headline, before.headline_value),
            epsilon=told.get("epsilon", before.epsilon),
            eta_s=self._pace.seconds_left,
            **self._place(report.phase, report.round),
        )

    def run_ended(self) -> None:
        """Stop renewing the file."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def close(self, state: Literal["completed", "failed"], reason: str | None) -> None:
        """Say how the run ended."""
        self.run_ended()
        self._tell(state=state, reason=reason, eta_s=None)
        self._write()

    def _place(self, name: str, number: int) -> dict[str, Any]:
        """Return what changes when a round of a phase is done."""
        phases = tuple(
            dataclasses.replace(phase, done=number) if phase.name == name else phase for phase in self._beat.phases
        )
        rounds = next((phase.rounds for phase in phases if phase.name == name), 0)
        return {"phase": name, "round": number, "rounds": rounds, "phases": phases}

    def _tell(self, **changes: Any) -> None:
        """Change all of it at once: the other thread may write at any time."""
        self._beat = dataclasses.replace(self._beat, **changes)
        self._changed.set()

    def _renew(self) -> None:
        waited = 0.0
        while not self._stopped.wait(_PAUSE_S):
            waited += _PAUSE_S
            if self._changed.is_set() or waited >= BEAT_S:
                waited = 0.0
                self._write()

    def _write(self) -> None:
        self._changed.clear()
        beat = dataclasses.replace(self._beat, updated=_now(), elapsed_s=time.monotonic() - self._began)
        try:
            # A directory that somebody took away is not made again.
            if self._path.parent.is_dir():
                write_json_atomic(self._path, dataclasses.asdict(beat))
        except OSError as error:
            _log.log(
                logging.DEBUG if self._warned else logging.WARNING,
                "%s: cannot be written (%s); the run goes on, only fedalign status will not see how",
                self._path,
                error.strerror,
            )
            self._warned = True


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
