"""When an engine is up and when each of its rounds ends, as an observer of a run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from fedalign.federation.observer import PhasePlan, RoundReport


@dataclass
class Stopwatch:
    """Notes the time when the engine is up and after every round, from round 0, the evaluation before the first.

    Parameters
    ----------
    began, started : float
        When the engine was called, and when it had found its nodes.
    wall, cpu : list of float
        Wall time and this process's CPU time in seconds at the end of each round.
    """

    began: float = field(default_factory=time.perf_counter)
    started: float = 0.0
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def run_started(self, plan: Sequence[PhasePlan], resumed_after: tuple[str, int] | None) -> None:
        """Note that the engine is up."""
        self.started = time.perf_counter()

    def round_ended(self, report: RoundReport) -> None:
        """Note the end of a round."""
        self.tick()

    def run_ended(self) -> None:
        """Do nothing."""

    def tick(self) -> None:
        """Note the time."""
        if not self.started:
            self.started = time.perf_counter()
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())

    def per_update(self, clock: Sequence[float], updates: int) -> float:
        """Return milliseconds per client-update over all rounds but the last, after which engines save.

        Parameters
        ----------
        clock : sequence of float
            `wall` or `cpu`.
        updates : int
            Of one round.
        """
        return 1e3 * (clock[-2] - clock[0]) / (updates * (len(clock) - 2))
