"""The progress bar: a line a phase with round, cohort, headline metric, epsilon and time left."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

from fedalign.federation.observer import PhasePlan, RoundReport

_RECENT = 20
"""How many of the last rounds the time left is estimated from."""


class Progress:
    """Observer that draws a bar for every phase, and nothing at all when the console is not a terminal.

    Parameters
    ----------
    headline : str
        Name of the metric to show, such as ``unseen/alignment_score``.
    console : rich.console.Console or None
        Where to draw; None for standard error.
    """

    def __init__(self, headline: str, console: Console | None = None) -> None:
        self._headline = headline
        self._console = Console(stderr=True) if console is None else console
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._left = 0
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._values: dict[str, float] = {}

    def run_started(self, plan: Sequence[PhasePlan], resumed_after: tuple[str, int] | None) -> None:
        """Draw every phase's bar, filled as far as a resumed run has come."""
        if not self._console.is_interactive:
            return
        self._bars = Bars(
            TextColumn("{task.fields[phase]}", style="bold", markup=False),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            _TimeLeft(),
            console=self._console,
        )
        done = _rounds_done(plan, resumed_after)
        for phase, completed in zip(plan, done, strict=True):
            self._tasks[phase.name] = self._bars.add_task(
                "", total=phase.rounds, completed=completed, phase=phase.name, detail="", ends_at=None
            )
        self._left = sum(phase.rounds for phase in plan) - sum(done)
        self._bars.start()

    def round_ended(self, report: RoundReport) -> None:
        """Move the phase's bar."""
        if self._bars is None:
            return
        if report.round > 0:
            self._left -= 1
            self._recent.append(report.seconds)
        for metric in report.metrics:
            if metric.group is None and (metric.name == self._headline or metric.scope == "server"):
                self._values[metric.name] = metric.value
        seconds_left = self._left * sum(self._recent) / max(1, len(self._recent))
        self._bars.update(
            self._tasks[report.phase],
            completed=report.round,
            detail=self._detail(report),
            ends_at=time.monotonic() + seconds_left if self._recent else None,
        )

    def run_ended(self) -> None:
        """Leave the bars as they are and give the terminal back."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def _detail(self, report: RoundReport) -> str:
        parts = []
        if report.cohort:
            failed = f" ({report.failed} failed)" if report.failed else ""
            parts.append(f"{report.cohort} clients{failed}")
        if self._headline in self._values:
            parts.append(f"{self._headline} {self._values[self._headline]:.4f}")
        if "epsilon" in self._values:
            parts.append(f"ε {self._values['epsilon']:.2f}")
        return " · ".join(parts)


class _TimeLeft(ProgressColumn):
    """Time left of the whole run, counted down between rounds."""

    def render(self, task: Task) -> Text:
        ends_at = task.fields["ends_at"]
        if ends_at is None or task.finished:
            return Text("")
        seconds = max(0, round(ends_at - time.monotonic()))
        return Text(f"ETA {seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}", style="cyan")


def _rounds_done(plan: Sequence[PhasePlan], resumed_after: tuple[str, int] | None) -> list[int]:
    """Return how many rounds of each phase a resumed run already has."""
    if resumed_after is None:
        return [0] * len(plan)
    names = [phase.name for phase in plan]
    current = names.index(resumed_after[0])
    return [phase.rounds if i < current else resumed_after[1] if i == current else 0 for i, phase in enumerate(plan)]
