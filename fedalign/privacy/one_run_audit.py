"""The one-run audit of Steinke, Nasr and Jagielski (2023): guess many fair coins in a single run.

The bound rests on the coins alone: canaries may influence each other and the scores may be any function of the output.
Neighbours differ by one canary that is added or removed; a claim for replaced ones must be translated first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import special

from fedalign.errors import UserError
from fedalign.privacy.audit_bound import CanaryScores, Floats, LowerBound

_BISECTIONS = 40


def one_run_p_value(epsilon: float, correct: int, guesses: int, canaries: int, delta: float) -> float:
    """Return how likely so many right guesses are at most, if the mechanism is (epsilon, delta)-private.

    Parameters
    ----------
    epsilon : float
        At least 0.
    correct, guesses, canaries : int
        0 <= correct <= guesses <= canaries; the auditor abstained from the others.
    delta : float

    References
    ----------
    Steinke, Nasr and Jagielski 2023 (arXiv 2305.08846), Theorem 5.2: beta + 2 m delta alpha with
    beta = P[B >= v], alpha = max over i = 1..v of P[v - i <= B < v] / i, B ~ Bin(r, e^epsilon / (1 + e^epsilon)).
    """
    if not 0 <= correct <= guesses <= canaries:
        raise ValueError(f"correct={correct}, guesses={guesses} and canaries={canaries} must not decrease from 0")
    if correct == 0:
        return 1.0
    right = special.expit(epsilon)
    steps = np.arange(1, correct + 1)
    least = correct - steps
    # P[B >= k]; zero guesses right or more is certain.
    tails = np.where(least > 0, special.betainc(np.maximum(least, 1), guesses - least + 1, right), 1.0)
    beta = float(special.betainc(correct, guesses - correct + 1, right))
    alpha = float(np.max((tails - beta) / steps))
    return min(1.0, beta + 2 * canaries * delta * alpha)


def one_run_bound(correct: int, guesses: int, canaries: int, delta: float, confidence: float = 0.95) -> float:
    """Return the largest epsilon that so many right guesses rule out; 0 if they rule out none.

    Parameters
    ----------
    correct, guesses, canaries : int
        As for ``one_run_p_value``; their numbers, but for ``correct``, are fixed before the scores are seen.
    delta : float
    confidence : float

    Returns
    -------
    float
        Below the true epsilon with probability at least ``confidence``.
    """

    def ruled_out(epsilon: float) -> bool:
        return one_run_p_value(epsilon, correct, guesses, canaries, delta) < 1 - confidence

    if not ruled_out(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while ruled_out(high):
        low, high = high, 2 * high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if ruled_out(middle) else (low, middle)
    return low


def guess(scores: Floats, included: NDArray[np.bool_], guesses: int) -> int:
    """Return how many guesses are right: the highest scores are taken for included, the lowest for held out.

    Among equal scores the worst order is assumed, so that the order of the canaries cannot leak the answer.

    Parameters
    ----------
    scores : float array, shape (m,)
    included : bool array, shape (m,)
    guesses : int
        At most m; the auditor abstains from the canaries in the middle.
    """
    order = np.lexsort((included, -scores))
    held_out = guesses // 2
    top, bottom = order[: guesses - held_out], order[len(order) - held_out :]
    return int(included[top].sum() + (~included[bottom]).sum())


@dataclass(frozen=True)
class OneRunBound(LowerBound):
    """The best of a few shares of canaries to guess, each at its part of the error probability.

    Parameters
    ----------
    shares : tuple of float
        Of the canaries; fixed in advance, since a number chosen on the same scores would not be covered.
    """

    shares: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)]

    name: ClassVar[str] = "one run"
    assumes: ClassVar[str] = ""

    def epsilon(
        self, scores: CanaryScores, delta: float, alpha: float, generator: np.random.Generator
    ) -> tuple[float, str]:
        """Return the largest bound over the shares."""
        if not scores.fair_coins:
            raise UserError(
                "audit: the one-run bound needs canaries that a fair coin each includes; "
                "draw them so or leave it out of the bounds"
            )
        values = np.concatenate([scores.included, scores.held_out])
        included = np.arange(scores.count) < len(scores.included)
        best, told = -1.0, ""
        for share in self.shares:
            guesses = max(1, round(share * scores.count))
            correct = guess(values, included, guesses)
            epsilon = one_run_bound(correct, guesses, scores.count, delta, 1 - alpha / len(self.shares))
            if epsilon > best:
                best, told = epsilon, f"{correct} of {guesses} guesses right, {scores.count} canaries"
        return best, told
