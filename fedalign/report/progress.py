"""The progress bar: a line a phase with round, cohort, headline metric, epsilon and time left."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

from fedalign.federation.observer import PhasePlan, RoundReport
from fedalign.report.pace import Pace


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
        self._pace = Pace((), None)
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
        self._pace = Pace(plan, resumed_after)
        for phase in plan:
            completed = self._pace.done[phase.name]
            self._tasks[phase.name] = self._bars.add_task(
                "", total=phase.rounds, completed=completed, phase=phase.name, detail="", ends_at=None
            )
        self._bars.start()

    def round_ended(self, report: RoundReport) -> None:
        """Move the phase's bar."""
        if self._bars is None:
            return
        self._pace.round_ended(report)
        for metric in report.metrics:
            if metric.group is None and (metric.name == self._headline or metric.scope == "server"):
                self._values[metric.name] = metric.value
        seconds_left = self._pace.seconds_left
        self._bars.update(
            self._tasks[report.phase],
            completed=report.round,
            detail=self._detail(report),
            ends_at=None if seconds_left is None else time.monotonic() + seconds_left,
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
