"""Which clients train in a round: a fraction, a fixed number, or each by its own coin (Poisson)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from fedalign.errors import UserError


class Sampler(ABC):
    """Draws the cohort of a round."""

    def check(self, clients: int) -> None:  # noqa: B027, most settings fit any federation
        """Refuse a federation that the setting does not fit, before the run starts; by default any will do.

        Raises
        ------
        UserError
            If there are too few training clients.
        """

    @abstractmethod
    def sample(self, clients: Sequence[str], generator: np.random.Generator) -> list[str]:
        """Return the cohort, in the order of ``clients``.

        Raises
        ------
        UserError
            If the federation has too few clients for the setting.
        """


def _choose(clients: Sequence[str], size: int, generator: np.random.Generator) -> list[str]:
    chosen = generator.choice(len(clients), size=size, replace=False)
    return [clients[i] for i in sorted(chosen.tolist())]


@dataclass(frozen=True)
class FractionSampler(Sampler):
    """A fixed share of the clients, rounded, at least one; 1.0 is full participation."""

    fraction: Annotated[float, Field(gt=0, le=1)]

    def sample(self, clients: Sequence[str], generator: np.random.Generator) -> list[str]:
        """Return ``fraction`` of the clients, drawn without replacement."""
        return _choose(clients, max(1, round(self.fraction * len(clients))), generator)


@dataclass(frozen=True)
class FixedSampler(Sampler):
    """A fixed number of clients."""

    size: Annotated[int, Field(ge=1)]

    def check(self, clients: int) -> None:
        """Refuse a federation with fewer than ``size`` training clients."""
        if self.size > clients:
            raise UserError(f"federation.sampler.size={self.size} but only {clients} clients train; lower it")

    def sample(self, clients: Sequence[str], generator: np.random.Generator) -> list[str]:
        """Return ``size`` clients, drawn without replacement."""
        self.check(len(clients))
        return _choose(clients, self.size, generator)


@dataclass(frozen=True)
class PoissonSampler(Sampler):
    """Every client independently with probability ``rate``; a cohort may be empty."""

    rate: Annotated[float, Field(gt=0, le=1)]

    def sample(self, clients: Sequence[str], generator: np.random.Generator) -> list[str]:
        """Return the clients whose coin came up."""
        coins = generator.random(len(clients)) < self.rate
        return [client for client, chosen in zip(clients, coins, strict=True) if chosen]
