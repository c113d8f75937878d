"""Which clients train in a round: a fraction, a fixed number, each by its own coin (Poisson), or group after group."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from fedalign.errors import UserError
from fedalign.privacy.scheme import Sampling, Scheme


class Sampler(ABC):
    """Draws the cohort of a round."""

    @abstractmethod
    def describe(self, clients: int) -> Sampling:
        """Return how cohorts out of ``clients`` clients come about."""

    def check(self, clients: int) -> None:  # noqa: B027, most settings fit any federation
        """Refuse a federation that the setting does not fit, before the run starts; by default any will do.

        Raises
        ------
        UserError
            If there are too few training clients.
        """

    @abstractmethod
    def sample(self, clients: Sequence[str], generator: np.random.Generator, number: int = 1) -> list[str]:
        """Return the cohort of round ``number``, from 1, in the order of ``clients``.

        Raises
        ------
        UserError
            If the federation has too few clients for the setting.
        """


def choose(clients: Sequence[str], size: int, generator: np.random.Generator) -> list[str]:
    """Return ``size`` of the clients, drawn without replacement, in their order."""
    chosen = generator.choice(len(clients), size=size, replace=False)
    return [clients[i] for i in sorted(chosen.tolist())]


def _of_size(size: int, clients: int) -> Sampling:
    return Sampling(Scheme.EVERYONE if size == clients else Scheme.FIXED_SIZE, clients, float(size))


@dataclass(frozen=True)
class FractionSampler(Sampler):
    """A fixed share of the clients, rounded, at least one; 1.0 is full participation."""

    fraction: Annotated[float, Field(gt=0, le=1)]

    def describe(self, clients: int) -> Sampling:
        """Return a fixed size, or everyone where the share rounds to all."""
        return _of_size(max(1, round(self.fraction * clients)), clients)

    def sample(self, clients: Sequence[str], generator: np.random.Generator, number: int = 1) -> list[str]:
        """Return ``fraction`` of the clients, drawn without replacement."""
        return choose(clients, max(1, round(self.fraction * len(clients))), generator)


@dataclass(frozen=True)
class FixedSampler(Sampler):
    """A fixed number of clients."""

    size: Annotated[int, Field(ge=1)]

    def check(self, clients: int) -> None:
        """Refuse a federation with fewer than ``size`` training clients."""
        if self.size > clients:
            raise UserError(f"federation.sampler.size={self.size} but only {clients} clients train; lower it")

    def describe(self, clients: int) -> Sampling:
        """Return a fixed size, or everyone where it is all."""
        return _of_size(self.size, clients)

    def sample(self, clients: Sequence[str], generator: np.random.Generator, number: int = 1) -> list[str]:
        """Return ``size`` clients, drawn without replacement."""
        self.check(len(clients))
        return choose(clients, self.size, generator)


@dataclass(frozen=True)
class PoissonSampler(Sampler):
    """Every client independently with probability ``rate``; a cohort may be empty."""

    rate: Annotated[float, Field(gt=0, le=1)]

    def describe(self, clients: int) -> Sampling:
        """Return Poisson sampling, or everyone where each coin is sure."""
        scheme = Scheme.EVERYONE if self.rate == 1 else Scheme.POISSON
        return Sampling(scheme, clients, self.rate * clients)

    def sample(self, clients: Sequence[str], generator: np.random.Generator, number: int = 1) -> list[str]:
        """Return the clients whose coin came up."""
        coins = generator.random(len(clients)) < self.rate
        return [client for client, chosen in zip(clients, coins, strict=True) if chosen]


@dataclass(frozen=True)
class CyclicSampler(Sampler):
    """One of ``groups`` fixed groups of clients after the other: a client's rounds are ``groups`` rounds apart.

    For federations whose clients cannot be drawn at random; what follows from their order is all that is promised.
    """

    groups: Annotated[int, Field(ge=1)]

    def check(self, clients: int) -> None:
        """Refuse a federation with fewer clients than groups."""
        if self.groups > clients:
            raise UserError(f"federation.sampler.groups={self.groups} but only {clients} clients train; lower it")

    def describe(self, clients: int) -> Sampling:
        """Return groups in turn, or everyone where there is one."""
        scheme = Scheme.EVERYONE if self.groups == 1 else Scheme.CYCLIC
        return Sampling(scheme, clients, clients / self.groups, self.groups)

    def sample(self, clients: Sequence[str], generator: np.random.Generator, number: int = 1) -> list[str]:
        """Return the group whose turn it is; nothing is drawn."""
        self.check(len(clients))
        return list(clients[(number - 1) % self.groups :: self.groups])
