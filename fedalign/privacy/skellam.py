"""Skellam noise: integers whose sums are Skellam again (Agarwal et al. 2021, arXiv 2110.04995)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq

from fedalign.privacy.events import Event, Orders
from fedalign.privacy.noise import Vector
from fedalign.privacy.rounding import Integers


@dataclass(frozen=True)
class SkellamEvent(Event):
    """A sum of integers released with Skellam noise that the clients brought; only a Rényi curve is known of it.

    Adding or removing a client means its integers or zeros in their place: it takes part and brings its noise in
    both data sets, since the server sees who takes part. For the same reason no sampling amplifies it.

    Parameters
    ----------
    l1, l2 : float
        What one client can change in the sum, in grid steps; at least 0.
    variance : float
        Of the noise on each coordinate of a sum over the smallest cohort, in squared grid steps; at least 0.
    """

    mechanism: ClassVar[str] = "skellam"
    l1: float
    l2: float
    variance: float

    def __post_init__(self) -> None:
        for name in ("l1", "l2", "variance"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}={value} must be finite and at least 0")

    def rdp(self, orders: Orders) -> Orders:
        """Return `skellam_rdp`."""
        return skellam_rdp(orders, self.l1, self.l2, self.variance)

    def doubled(self) -> Self:
        """Return twice the sensitivities."""
        return type(self)(2 * self.l1, 2 * self.l2, self.variance)


def skellam(size: int, variance: float, generator: np.random.Generator) -> Integers:
    """Return ``size`` independent draws of the symmetric Skellam distribution, int64, shape (size,).

    Each is the difference of two Poisson draws of mean ``variance / 2``. Independent draws of variances a and b add
    up to one of variance a + b, so clients can each bring a share of the noise.

    Raises
    ------
    ValueError
        If the variance is negative, infinite or not a number.
    """
    if not (math.isfinite(variance) and variance >= 0):
        raise ValueError(f"the variance of Skellam noise must be finite and at least 0, not {variance}")
    return generator.poisson(variance / 2, size) - generator.poisson(variance / 2, size)


def skellam_rdp(orders: ArrayLike, l1: float, l2: float, variance: float) -> Vector:
    """Return Rényi differential privacy of integers released with Skellam noise (Corollary 3.6 of the paper).

    eps(a) <= a l2^2 / (2 v) + min(((2a - 1) l2^2 + 6 l1) / (4 v^2), 3 l1 / (2 v)): what Gaussian noise of the same
    variance v gives, and a remainder that vanishes with 1 / v. It is shown for whole orders; another order gets the
    bound of the next whole one, which is valid because Rényi divergence does not decrease with the order.

    Parameters
    ----------
    orders : float array, shape (n,)
        Above 1.
    l1, l2 : float
        Sensitivities in the L1 and L2 norm, in grid steps.
    variance : float
        Of the noise on each coordinate of the sum, in squared grid steps; 0 gives infinity.

    Returns
    -------
    float64 array, shape (n,)
    """
    order = np.ceil(np.atleast_1d(np.asarray(orders, dtype=np.float64)))
    if variance == 0:
        return np.full(order.shape, math.inf if l2 else 0.0)
    small = ((2 * order - 1) * l2**2 + 6 * l1) / (4 * variance**2)
    return order * l2**2 / (2 * variance) + np.minimum(small, 3 * l1 / (2 * variance))


def skellam_quantile(variance: float, probability: float) -> float:
    """Return a value that a Skellam draw exceeds in absolute value with ``probability`` at most.

    By Chernoff's bound: log E exp(s X) = v (cosh(s) - 1), least with s = asinh(t / v). For large variances it is the
    Gaussian's; for small ones the tail is heavier than that.
    """
    if variance == 0:
        return 0.0
    wanted = math.log(2 / probability)

    def excess(t: float) -> float:
        # Of hypot(t, v) - v, the form that does not cancel for small t / v.
        return t * math.asinh(t / variance) - t * t / (math.hypot(t, variance) + variance) - wanted

    gaussian = math.sqrt(2 * variance * wanted)
    return float(brentq(excess, 0.0, 2 * gaussian + 2 * wanted + 1))


def integer_l1(l2: float, size: int) -> float:
    """Return the bound on the L1 norm of an integer vector that follows from its L2 norm and its length."""
    return min(math.sqrt(size) * l2, l2**2)
