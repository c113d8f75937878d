"""How much a client counts by what is wanted there: all the same, more where it is served badly, or by min-max.

A client's loss is one less the mean reward of what it drew under its own preferences, in [0, 1]. Everything is sums, so
that no server needs to see one client's loss.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedalign.contribution import Contribution, State

WEIGHTS = "preferences/weight"
"""Name in the state: of each preference, shape (G,), on the simplex."""
_LOSS, _COUNT = "preferences/loss_sum", "preferences/count"
_LEAST = 1e-3
"""Weight, of a client that counts 1, below which a preference is taken to be absent; noise may leave a sum anywhere."""


@dataclass(frozen=True)
class Losses:
    """How a client's preferences fared in a round.

    Parameters
    ----------
    total, count : float tensor, shape (G + 1,)
        Sum of losses and number of texts by preference; those that are no plain combination are last.
    """

    total: Tensor
    count: Tensor

    @property
    def mean(self) -> float:
        """Mean loss; 1 where nothing was drawn."""
        count = float(self.count.sum())
        return float(self.total.sum()) / count if count else 1.0


class Weighting(ABC):
    """The ``weighting`` part; subclasses are frozen dataclasses of their settings."""

    def initial(self, preferences: int) -> State:
        """Return what the server keeps, for G preferences; by default nothing."""
        return {}

    def shapes(self, preferences: int) -> Mapping[str, tuple[int, ...]]:
        """Return names and shapes of what clients add beside their change; by default nothing."""
        return {}

    @abstractmethod
    def weight(self, state: State, losses: Losses) -> float:
        """Return how much a client counts."""

    def told(self, losses: Losses) -> State:
        """Return what a client adds beside its change; by default nothing."""
        return {}

    def update(self, state: State, total: Contribution) -> State:
        """Return what changes of what the server keeps; by default nothing."""
        return {}

    def report(self, state: State, statements: Sequence[str]) -> Mapping[str, float]:
        """Return what the server can tell; by default nothing."""
        return {}


@dataclass(frozen=True)
class Even(Weighting):
    """Every client counts the same."""

    def weight(self, state: State, losses: Losses) -> float:
        """Return 1."""
        return 1.0


@dataclass(frozen=True)
class QFair(Weighting):
    """A client counts by its loss to the power of q (Li et al. 2020, q-FFL).

    Changes are averaged by these weights, in place of q-FFL's step size from an estimate of a Lipschitz constant: that
    step would need norms of single changes, which a secure sum does not tell.

    Parameters
    ----------
    q : float
        0 counts all the same.
    least : float
        Weight of a client without loss.
    """

    q: Annotated[float, Field(ge=0)]
    least: Annotated[float, Field(gt=0, le=1)]

    def weight(self, state: State, losses: Losses) -> float:
        """Return the power of the client's loss."""
        return float(max(self.least, min(1.0, losses.mean) ** self.q))


@dataclass(frozen=True)
class MinMax(Weighting):
    """Weights of preferences follow their losses by exponentiated gradient (Mohri et al. 2019, agnostic learning).

    A client counts by the weight of its preferences, as a multiple of an even weight. Without secure sums the server
    can read from a client's sums what is wanted there.

    Parameters
    ----------
    step : float
        A round multiplies a preference's weight by ``exp(step * loss)``.
    most : float
        Largest weight, as a multiple of an even one: nobody takes over by losing.
    """

    step: Annotated[float, Field(ge=0)]
    most: Annotated[float, Field(ge=1)]

    def initial(self, preferences: int) -> State:
        """Return even weights."""
        return {WEIGHTS: torch.full((preferences,), 1.0 / preferences)}

    def shapes(self, preferences: int) -> Mapping[str, tuple[int, ...]]:
        """Return losses and counts by preference."""
        return {_LOSS: (preferences,), _COUNT: (preferences,)}

    def weight(self, state: State, losses: Losses) -> float:
        """Return the mean multiple over the client's texts; what is no plain combination counts 1."""
        multiples = torch.cat([state[WEIGHTS] * len(state[WEIGHTS]), torch.ones(1)]).double()
        count = losses.count.double()
        return float((multiples * count).sum() / count.sum()) if bool(count.any()) else 1.0

    def told(self, losses: Losses) -> State:
        """Return mean losses as shares of the client's texts, so that no client adds more than 1."""
        count = losses.count[:-1]
        whole = losses.count.sum().clamp(min=1.0)
        return {_LOSS: (losses.total[:-1] / whole).float(), _COUNT: (count / whole).float()}

    def update(self, state: State, total: Contribution) -> State:
        """Return the weights after a round; a preference that was absent keeps its own relative to the mean loss."""
        count = total.tensors[_COUNT].double().clamp(min=0)
        there = count > _LEAST
        if not bool(there.any()):
            return {}
        losses = total.tensors[_LOSS].double() / count.clamp(min=_LEAST)
        losses = torch.where(there, losses, losses[there].mean()).clamp(0.0, 1.0)
        weights = torch.softmax(state[WEIGHTS].double().log() + self.step * losses, 0)
        return {WEIGHTS: _capped(weights, self.most / len(weights)).float()}

    def report(self, state: State, statements: Sequence[str]) -> Mapping[str, float]:
        """Return the weights."""
        return {
            f"train/preference_weight/{name}": weight
            for name, weight in zip(statements, state[WEIGHTS].tolist(), strict=True)
        }


def _capped(weights: Tensor, most: float) -> Tensor:
    """Return weights on the simplex, none above ``most``: what is cut off goes to the others in proportion."""
    full = torch.zeros_like(weights, dtype=torch.bool)
    while bool((weights > most + 1e-12).any()):
        full |= weights >= most
        rest = 1.0 - most * int(full.sum())
        weights = torch.where(full, most, weights * rest / weights[~full].sum())
    return weights
