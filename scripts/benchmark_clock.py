"""When each round of a run ends, as an observer of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from fedalign.errors import UserError
from fedalign.federation.observer import PhasePlan, RoundReport


@dataclass
class Stopwatch:
    """Notes the time after every round, from round 0, the evaluation before the first.

    Parameters
    ----------
    began : float
        When the engine was called.
    wall, cpu : list of float
        Wall time and this process's CPU time in seconds at the end of each round.
    """

    began: float = field(default_factory=time.perf_counter)
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def run_started(self, plan: Sequence[PhasePlan], resumed_after: tuple[str, int] | None) -> None:
        """Do nothing."""

    def round_ended(self, report: RoundReport) -> None:
        """Note the end of a round.

        Raises
        ------
        UserError
            If clients failed: the time of the others is no time of all.
        """
        if report.failed:
            raise UserError(f"{report.failed} of {report.cohort} clients failed, and what was left took no true time")
        self.tick()

    def run_ended(self) -> None:
        """Do nothing."""

    def tick(self) -> None:
        """Note the time."""
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())

    def per_update(self, clock: Sequence[float], updates: int) -> float:
        """Return milliseconds per client-update over all rounds but the first and the last.

        In the first, workers are still starting; after the last, engines evaluate and save.

        Parameters
        ----------
        clock : sequence of float
            `wall` or `cpu`.
        updates : int
            Of one round.
        """
        return 1e3 * (clock[-2] - clock[1]) / (updates * (len(clock) - 3))

    @property
    def start_s(self) -> float:
        """Seconds from the call of the engine to the end of the first round, without what a later round takes."""
        return self.wall[1] - self.began - (self.wall[-2] - self.wall[1]) / (len(self.wall) - 3)
