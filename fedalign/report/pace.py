"""How far a run has come and how long it will take: rounds done by phase, and the time left from the last of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from fedalign.federation.observer import PhasePlan, RoundReport

_RECENT = 20
"""How many of the last rounds the time left is estimated from."""


class Pace:
    """Counts rounds against the plan.

    Parameters
    ----------
    plan : sequence of PhasePlan
    resumed_after : (str, int) or None
        Phase and round of the checkpoint that the run goes on from.

    Attributes
    ----------
    done : dict from phase to int
        Rounds done, phases in order.
    """

    def __init__(self, plan: Sequence[PhasePlan], resumed_after: tuple[str, int] | None) -> None:
        self.done = dict(zip((phase.name for phase in plan), _rounds_done(plan, resumed_after), strict=True))
        self._left = sum(phase.rounds for phase in plan) - sum(self.done.values())
        self._recent: deque[float] = deque(maxlen=_RECENT)

    def round_ended(self, report: RoundReport) -> None:
        """Count a round; the evaluation before the first is none."""
        self.done[report.phase] = report.round
        if report.round > 0:
            self._left -= 1
            self._recent.append(report.seconds)

    @property
    def seconds_left(self) -> float | None:
        """Seconds that the rest of the run will take at the recent pace; None before the first round."""
        return self._left * sum(self._recent) / len(self._recent) if self._recent else None


def _rounds_done(plan: Sequence[PhasePlan], resumed_after: tuple[str, int] | None) -> list[int]:
    """Return how many rounds of each phase a resumed run already has."""
    if resumed_after is None:
        return [0] * len(plan)
    names = [phase.name for phase in plan]
    current = names.index(resumed_after[0])
    return [phase.rounds if i < current else resumed_after[1] if i == current else 0 for i, phase in enumerate(plan)]
