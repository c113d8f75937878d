"""One line of log a round, for runs that nobody watches on a terminal."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from fedalign.federation.observer import PhasePlan, RoundReport

_log = logging.getLogger(__name__)


class RoundLog:
    """Observer that writes each round's cohort, headline metric and epsilon to the log.

    Parameters
    ----------
    headline : str
        Name of the metric to tell.
    """

    def __init__(self, headline: str) -> None:
        self._headline = headline
        self._rounds: dict[str, int] = {}

    def run_started(self, plan: Sequence[PhasePlan], resumed_after: tuple[str, int] | None) -> None:
        """Tell the plan."""
        self._rounds = {phase.name: phase.rounds for phase in plan}
        phases = ", ".join(f"{phase.name} ({phase.rounds} rounds)" for phase in plan)
        after = f"; goes on after round {resumed_after[1]} of {resumed_after[0]}" if resumed_after else ""
        _log.info("phases: %s%s", phases, after)

    def round_ended(self, report: RoundReport) -> None:
        """Tell of one round."""
        told = [f"{report.cohort - report.failed} of {report.cohort} clients"] if report.round else ["before training"]
        names = (self._headline, self._headline.rpartition("/")[2], "epsilon")
        told += [f"{m.scope} {m.name} {m.value:.4f}" for m in report.metrics if m.group is None and m.name in names]
        line = "%s: round %d of %d, %.1f s: %s"
        _log.info(line, report.phase, report.round, self._rounds.get(report.phase, 0), report.seconds, ", ".join(told))

    def run_ended(self) -> None:
        """Do nothing."""
