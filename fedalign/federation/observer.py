"""Who watches a run: the events that the strategy reports, and the protocol of what listens to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from fedalign.metrics.record import Metric


@dataclass(frozen=True)
class PhasePlan:
    """A phase as announced before the run: its name and how many rounds it has."""

    name: str
    rounds: int


@dataclass(frozen=True)
class RoundReport:
    """What happened in one round.

    Parameters
    ----------
    phase : str
    round : int
        From 1; 0 reports the evaluation before the first round.
    cohort : int
        Clients asked to train.
    failed : int
        Clients that were asked and gave no contribution.
    seconds : float
        Wall time of the round, evaluation included.
    metrics : tuple of Metric
    """

    phase: str
    round: int
    cohort: int
    failed: int
    seconds: float
    metrics: tuple[Metric, ...]


class Observer(Protocol):
    """Something that listens to a run: files, a progress bar, TensorBoard."""

    def run_started(self, plan: Sequence[PhasePlan], resumed_after: tuple[str, int] | None) -> None:
        """Hear the plan once; ``resumed_after`` is (phase, round) of the checkpoint that the run goes on from."""

    def round_ended(self, report: RoundReport) -> None:
        """Hear of one finished round."""

    def run_ended(self) -> None:
        """Hear that the run is over, whether it succeeded or not; release what is held."""
