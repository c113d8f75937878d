"""Who guards what a run lets out: the interface, and the form of it that promises nothing."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flwr.serverapp import Grid

from fedalign.contribution import WEIGHT, Contribution, State, is_finite
from fedalign.federation.directory import ClientDirectory
from fedalign.federation.messages import Terms
from fedalign.methods.base import Phase
from fedalign.metrics.record import decode
from fedalign.rng import Streams


class Custody(ABC):
    """Stands between the sums of a run and whoever sees what is made of them."""

    @abstractmethod
    def begin(self, directory: ClientDirectory) -> None:
        """Take note of who is there, before the first exchange."""

    @abstractmethod
    def layer(self, grid: Grid) -> Grid:
        """Return the grid that training and evaluation go over."""

    @abstractmethod
    def cohort_generator(self, streams: Streams) -> np.random.Generator:
        """Return what draws the cohort of a round."""

    @abstractmethod
    def affords(self, phase: Phase[Any], state: State, number: int, cohort: Sequence[str]) -> bool:
        """Tell whether a round may be run at all."""

    @abstractmethod
    def announce(self, phase: Phase[Any], cohort: Sequence[str]) -> None:
        """Hear that a round is about to be asked for: where clients hide their own data, its cost is due now."""

    @abstractmethod
    def training_terms(self, phase: Phase[Any], state: State, cohort: Sequence[str]) -> Terms:
        """Return the public numbers of a round."""

    @abstractmethod
    def inspect(self, phase: Phase[Any], state: State, terms: Terms, clients: int, contribution: Contribution) -> None:
        """Refuse a node's reply to a round, the sum over ``clients``, that must not be added.

        Raises
        ------
        ValueError
            If names, shapes or numbers are not what they should be, or the sum is longer than bounded terms can be.
        """

    @property
    @abstractmethod
    def releases_always(self) -> bool:
        """Whether a round that drew nobody ends in a release all the same, of noise."""

    @abstractmethod
    def release(
        self, phase: Phase[Any], state: State, number: int, cohort: Sequence[str], total: Contribution
    ) -> Contribution:
        """Return a round's total as the phase, and everyone after it, may see it."""

    @abstractmethod
    def evaluation_terms(self, phase: Phase[Any], clients: Sequence[str]) -> Terms | None:
        """Return the public numbers of an evaluation; None where there is to be none."""

    @abstractmethod
    def announce_evaluation(self, phase: Phase[Any]) -> None:
        """Hear that an evaluation is about to be asked for, as :meth:`announce`."""

    @abstractmethod
    def inspect_metrics(self, clients: int, contribution: Contribution) -> None:
        """Refuse a node's reply to an evaluation, the sum over ``clients``, that must not be added.

        Raises
        ------
        ValueError
            If a number is not finite, or larger than bounded terms can make it.
        """

    @abstractmethod
    def release_metrics(self, phase: Phase[Any], number: int, total: Contribution) -> Contribution:
        """Return the total of an evaluation as it may be seen."""

    @property
    @abstractmethod
    def by_group(self) -> bool:
        """Whether metrics come by group, so that they can be compared over groups."""

    @property
    @abstractmethod
    def lets_choose(self) -> bool:
        """Whether metrics may pick a checkpoint."""

    @property
    @abstractmethod
    def epsilon(self) -> float | None:
        """What has been spent so far; None where nothing is counted."""

    @abstractmethod
    def statement(self) -> dict[str, Any] | None:
        """Return the guarantee as ``summary.json`` states it; None where there is none."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Return what a checkpoint must keep, as JSON."""

    @abstractmethod
    def tensors(self) -> State:
        """Return what a checkpoint must keep, as tensors."""

    @abstractmethod
    def restore(self, facts: Mapping[str, Any], tensors: State) -> None:
        """Go on from a checkpoint."""


class NoCustody(Custody):
    """Everything is passed on as it is."""

    def begin(self, directory: ClientDirectory) -> None:
        """Do nothing."""

    def layer(self, grid: Grid) -> Grid:
        """Return the grid itself."""
        return grid

    def cohort_generator(self, streams: Streams) -> np.random.Generator:
        """Return the run's own stream."""
        return streams.numpy("cohort")

    def affords(self, phase: Phase[Any], state: State, number: int, cohort: Sequence[str]) -> bool:
        """Return True."""
        return True

    def announce(self, phase: Phase[Any], cohort: Sequence[str]) -> None:
        """Do nothing."""

    def training_terms(self, phase: Phase[Any], state: State, cohort: Sequence[str]) -> Terms:
        """Return no terms."""
        return Terms(cohort=len(cohort))

    def inspect(self, phase: Phase[Any], state: State, terms: Terms, clients: int, contribution: Contribution) -> None:
        """Refuse what the phase does not add up, and what is not finite."""
        template = phase.template(state)
        if template is not None:
            template.check(contribution)
        else:
            check_finite(contribution)
            if contribution.scalars.get(WEIGHT, 0.0) < 0:
                raise ValueError(f"{WEIGHT}: is {contribution.scalars[WEIGHT]}")
            phase.check_reply(state, contribution)

    @property
    def releases_always(self) -> bool:
        """False."""
        return False

    def release(
        self, phase: Phase[Any], state: State, number: int, cohort: Sequence[str], total: Contribution
    ) -> Contribution:
        """Return the total."""
        return total

    def evaluation_terms(self, phase: Phase[Any], clients: Sequence[str]) -> Terms:
        """Return no terms."""
        return Terms(cohort=len(clients))

    def announce_evaluation(self, phase: Phase[Any]) -> None:
        """Do nothing."""

    def inspect_metrics(self, clients: int, contribution: Contribution) -> None:
        """Refuse what is not finite, or no metric."""
        check_finite(contribution)
        decode(contribution.scalars)

    def release_metrics(self, phase: Phase[Any], number: int, total: Contribution) -> Contribution:
        """Return the total."""
        return total

    @property
    def by_group(self) -> bool:
        """True."""
        return True

    @property
    def lets_choose(self) -> bool:
        """True."""
        return True

    @property
    def epsilon(self) -> None:
        """None."""
        return

    def statement(self) -> None:
        """Return None."""
        return

    def facts(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def tensors(self) -> State:
        """Return nothing."""
        return {}

    def restore(self, facts: Mapping[str, Any], tensors: State) -> None:
        """Do nothing."""


def check_finite(contribution: Contribution) -> None:
    """Refuse a contribution with a number that is not finite.

    Raises
    ------
    ValueError
        Naming it.
    """
    for name, value in contribution.scalars.items():
        if not math.isfinite(value):
            raise ValueError(f"{name}: is {value}")
    for name, tensor in contribution.tensors.items():
        if not is_finite(tensor):
            raise ValueError(f"{name}: holds NaN or Inf")
