"""Bounds from the two error rates of telling included canaries from held-out ones: (epsilon, delta) and mu-GDP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field
from scipy import special

from fedalign.privacy.audit_bound import CanaryScores, Floats, LowerBound
from fedalign.privacy.confidence import clopper_pearson_upper
from fedalign.privacy.gaussian_divergence import gaussian_epsilon

Shares = Annotated[tuple[Annotated[float, Field(ge=0, lt=1)], ...], Field(min_length=1)]


@dataclass(frozen=True)
class ErrorRates:
    """Upper limits of the two error rates of some tests, which all hold at once.

    Parameters
    ----------
    false_positive, false_negative : float array, shape (tests,)
    """

    false_positive: Floats
    false_negative: Floats


def error_rates(scores: CanaryScores, shares: tuple[float, ...], alpha: float) -> ErrorRates:
    """Return upper limits of the error rates of two tests a share.

    A test's threshold is an order statistic: the score that the given share of held-out canaries exceeds (then the
    included ones tell the other error), or that the given share of included ones stays below. The error beyond an
    order statistic follows a beta distribution whatever the scores are, whose quantile is Clopper and Pearson's limit:
    the ranks are fixed in advance, so that no canaries need to be set aside for the choice of a threshold.

    Parameters
    ----------
    scores : CanaryScores
    shares : tuple of float
    alpha : float
        Probability that any of the limits lies below its true rate, split evenly over all of them.
    """
    each = alpha / (4 * len(shares))
    positive = [_rates(scores.held_out, scores.included, share, each) for share in shares]
    # The mirror image: the highest becomes the lowest, and the two sides change places.
    negative = [_rates(-scores.included, -scores.held_out, share, each) for share in shares]
    return ErrorRates(
        np.array([own for own, _ in positive] + [other for _, other in negative]),
        np.array([other for _, other in positive] + [own for own, _ in negative]),
    )


def _rates(null: Floats, other: Floats, share: float, alpha: float) -> tuple[float, float]:
    """Return limits of the shares of ``null`` above, and of ``other`` not above, an order statistic of ``null``."""
    above = min(int(share * len(null)), len(null) - 1)
    threshold = np.sort(null)[len(null) - 1 - above]
    missed = int((other <= threshold).sum())
    return (
        float(clopper_pearson_upper(above, len(null), alpha)),
        float(clopper_pearson_upper(missed, len(other), alpha)),
    )


def roc_epsilon(rates: ErrorRates, delta: float) -> Floats:
    """Return the epsilon that each test's error rates rule out, shape (tests,), at least 0.

    From TPR <= e^epsilon FPR + delta and TNR <= e^epsilon FNR + delta (Kairouz, Oh and Viswanath 2015, Theorem 2.1).
    """
    hits = np.maximum(1 - rates.false_negative - delta, 0)
    rejections = np.maximum(1 - rates.false_positive - delta, 0)
    with np.errstate(divide="ignore"):
        both = np.maximum(np.log(hits / rates.false_positive), np.log(rejections / rates.false_negative))
    return np.maximum(both, 0.0)


def gdp_mu(rates: ErrorRates) -> Floats:
    """Return the mu of Gaussian differential privacy that each test's error rates rule out, shape (tests,).

    From FNR >= Phi(Phi^-1(1 - FPR) - mu) (Dong, Roth and Su 2022, Definition 4).
    """
    found = -special.ndtri(rates.false_positive) - special.ndtri(rates.false_negative)
    return np.maximum(found, 0.0)


@dataclass(frozen=True)
class RocBound(LowerBound):
    """Epsilon from the definition of differential privacy, at the best of some thresholds.

    Parameters
    ----------
    shares : tuple of float
        Error rates on the canaries themselves at which the thresholds lie; see ``error_rates``.
    """

    shares: Shares

    name: ClassVar[str] = "error rates"
    assumes: ClassVar[str] = "scores are independent"

    def epsilon(
        self, scores: CanaryScores, delta: float, alpha: float, generator: np.random.Generator
    ) -> tuple[float, str]:
        """Return the largest bound over the thresholds."""
        rates = error_rates(scores, self.shares, alpha)
        epsilons = roc_epsilon(rates, delta)
        best = int(np.argmax(epsilons))
        return float(epsilons[best]), _told(rates, best)


@dataclass(frozen=True)
class GdpBound(LowerBound):
    """Epsilon from the trade-off between the error rates under Gaussian noise, at the best of some thresholds.

    Parameters
    ----------
    shares : tuple of float
        As for ``RocBound``.
    """

    shares: Shares

    name: ClassVar[str] = "Gaussian trade-off"
    assumes: ClassVar[str] = "scores are independent and the noise is Gaussian"

    def epsilon(
        self, scores: CanaryScores, delta: float, alpha: float, generator: np.random.Generator
    ) -> tuple[float, str]:
        """Return the epsilon at ``delta`` of the largest mu over the thresholds."""
        rates = error_rates(scores, self.shares, alpha)
        mus = gdp_mu(rates)
        best = int(np.argmax(mus))
        epsilon = float(gaussian_epsilon(0.0, 1.0, mus[best], 1.0, delta))
        return epsilon, f"mu >= {mus[best]:.3g}; {_told(rates, best)}"


def _told(rates: ErrorRates, best: int) -> str:
    positive, negative = rates.false_positive[best], rates.false_negative[best]
    return f"false positives <= {100 * positive:.3g} %, false negatives <= {100 * negative:.3g} %"
