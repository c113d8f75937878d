"""What an audit goes by, the scores of canaries, and what it comes to: lower bounds on epsilon."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedalign.errors import UserError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class CanaryScores:
    """How much each canary looks as if the mechanism had seen it; more means rather seen.

    Parameters
    ----------
    included : float array, shape (n_in,)
        Of the canaries that took part.
    held_out : float array, shape (n_out,)
        Of canaries drawn alike that did not.
    fair_coins : bool
        Whether a fair coin of its own decided for each canary on which side it is.

    Raises
    ------
    UserError
        If a side has fewer than two canaries, or a score is not a finite number.
    """

    included: Floats
    held_out: Floats
    fair_coins: bool

    def __post_init__(self) -> None:
        for name, scores in (("included", self.included), ("held-out", self.held_out)):
            if scores.ndim != 1 or len(scores) < 2:
                shape = "x".join(str(side) for side in scores.shape)
                raise UserError(f"audit: {shape} {name} canaries, but both sides need a row of at least two; use more")
            broken = int((~np.isfinite(scores)).sum())
            if broken:
                raise UserError(
                    f"audit: {broken} of {len(scores)} {name} canaries have a score that is no finite number; "
                    "the audited run has diverged"
                )

    @property
    def count(self) -> int:
        """Number of canaries."""
        return len(self.included) + len(self.held_out)


@dataclass(frozen=True)
class Bound:
    """A lower bound on epsilon.

    Parameters
    ----------
    name : str
    epsilon : float
        The true epsilon is smaller with probability at most 1 - ``confidence``.
    ceiling : float
        The most that so many canaries could have shown; a larger claim cannot be refuted by them.
    confidence : float
    assumes : str
        What the statement rests on beyond the draw of the canaries; empty if on nothing.
    detail : str
        How it came about, for a reader.
    """

    name: str
    epsilon: float
    ceiling: float
    confidence: float
    assumes: str
    detail: str


class LowerBound(ABC):
    """Settings of a way to bound epsilon from below."""

    name: ClassVar[str]
    assumes: ClassVar[str]

    @abstractmethod
    def epsilon(
        self, scores: CanaryScores, delta: float, alpha: float, generator: np.random.Generator
    ) -> tuple[float, str]:
        """Return the bound that holds with confidence 1 - ``alpha``, and how it came about.

        Raises
        ------
        UserError
            If the canaries were not drawn as the bound needs it.
        """

    def ceiling(self, scores: CanaryScores, delta: float, alpha: float, generator: np.random.Generator) -> float:
        """Return what the bound would be if as many canaries were told apart without an error."""
        perfect = CanaryScores(np.ones_like(scores.included), np.zeros_like(scores.held_out), scores.fair_coins)
        return self.epsilon(perfect, delta, alpha, generator)[0]

    def measure(self, scores: CanaryScores, delta: float, alpha: float, generator: np.random.Generator) -> Bound:
        """Return the bound with what it rests on; raises as ``epsilon`` does."""
        epsilon, detail = self.epsilon(scores, delta, alpha, generator)
        ceiling = self.ceiling(scores, delta, alpha, generator)
        return Bound(self.name, epsilon, ceiling, 1 - alpha, self.assumes, detail)
