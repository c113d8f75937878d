"""How far two normal distributions are apart in the sense of differential privacy: delta at epsilon, and back."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Floats = NDArray[np.float64]

_BISECTIONS = 48
_LARGEST_EPSILON = 1e100


def gaussian_delta(epsilon: ArrayLike, mean0: ArrayLike, std0: ArrayLike, mean1: ArrayLike, std1: ArrayLike) -> Floats:
    """Return the smallest delta at which two normal distributions are (epsilon, delta)-indistinguishable.

    That is the larger hockey-stick divergence of the two directions. Arguments broadcast.

    Parameters
    ----------
    epsilon : float array
        At least 0.
    mean0, std0, mean1, std1 : float array
        Of the two distributions; deviations are positive.

    Raises
    ------
    ValueError
        If a deviation is not positive or anything is not finite.
    """
    shift, ratio = _standardised(mean0, std0, mean1, std1)
    return _delta(np.asarray(epsilon, dtype=np.float64), shift, ratio)


def gaussian_epsilon(
    mean0: ArrayLike, std0: ArrayLike, mean1: ArrayLike, std1: ArrayLike, delta: float
) -> NDArray[np.float64]:
    """Return the smallest epsilon at which two normal distributions are (epsilon, delta)-indistinguishable.

    Equal deviations give the Gaussian mechanism's exact epsilon (Balle and Wang 2018, Theorem 8) with
    mu = |mean1 - mean0| / std. Arguments broadcast. Infinite where epsilon exceeds 1e100.

    Raises
    ------
    ValueError
        If ``delta`` is not inside (0, 1), a deviation is not positive or anything is not finite.
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta={delta} must lie inside (0, 1)")
    shift, ratio = _standardised(mean0, std0, mean1, std1)
    low, high = np.zeros_like(shift), np.ones_like(shift)
    while True:
        short = (_delta(high, shift, ratio) > delta) & (high < _LARGEST_EPSILON)
        if not short.any():
            break
        low, high = np.where(short, high, low), np.where(short, 2 * high, high)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        above = _delta(middle, shift, ratio) > delta
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    enough = _delta(np.zeros_like(shift), shift, ratio) <= delta
    return np.where(enough, 0.0, np.where(high < _LARGEST_EPSILON, high, np.inf))


def _standardised(mean0: ArrayLike, std0: ArrayLike, mean1: ArrayLike, std1: ArrayLike) -> tuple[Floats, Floats]:
    """Return mean and log deviation of the second distribution in units of the first, broadcast."""
    below, spread0, above, spread1 = (np.asarray(each, dtype=np.float64) for each in (mean0, std0, mean1, std1))
    if not (np.all(spread0 > 0) and np.all(spread1 > 0)):
        raise ValueError("a standard deviation must be positive")
    shift, ratio = np.broadcast_arrays((above - below) / spread0, np.log(spread1) - np.log(spread0))
    if not (np.isfinite(shift).all() and np.isfinite(ratio).all()):
        raise ValueError("means and standard deviations must be finite")
    return shift, ratio


def _delta(epsilon: Floats, shift: Floats, log_ratio: Floats) -> Floats:
    forward = _hockey_stick(epsilon, shift, log_ratio)
    # In units of the other distribution the same pair lies the other way round.
    return np.maximum(forward, _hockey_stick(epsilon, shift * np.exp(-log_ratio), -log_ratio))


def _hockey_stick(epsilon: Floats, shift: Floats, log_ratio: Floats) -> Floats:
    """Return sup over S of P(S) - e^epsilon Q(S) for P = N(shift, ratio^2) and Q = N(0, 1).

    The best S is where log p - log q > epsilon. The log ratio is a x^2 + b x + c, so S lies outside two roots when P
    is the wider one (a > 0), between them when it is the narrower one, and right of one when both are as wide.
    """
    shift = np.abs(shift)
    ratio = np.exp(log_ratio)
    a = -np.expm1(-2 * log_ratio) / 2
    b = shift / ratio**2
    c = -((shift / ratio) ** 2) / 2 - log_ratio - epsilon
    # b^2 - 4 a c, without the terms that cancel.
    discriminant = (shift / ratio) ** 2 + 4 * a * (epsilon + log_ratio)
    q = -(b + np.sqrt(np.maximum(discriminant, 0))) / 2
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        far, near = np.where(a == 0, -np.inf, q / a), c / q
        outside = _outside(epsilon, shift, ratio, far, near)
        between = _between(epsilon, shift, ratio, near, far)
    found = np.where(a >= 0, outside, between)
    return np.where((discriminant > 0) & (q < 0), np.maximum(found, 0.0), 0.0)


def _outside(epsilon: Floats, shift: Floats, ratio: Floats, lower: Floats, upper: Floats) -> Floats:
    p = special.ndtr((lower - shift) / ratio) + special.ndtr((shift - upper) / ratio)
    log_q = np.logaddexp(special.log_ndtr(lower), special.log_ndtr(-upper))
    return np.asarray(p - np.exp(epsilon + log_q))


def _between(epsilon: Floats, shift: Floats, ratio: Floats, lower: Floats, upper: Floats) -> Floats:
    p = np.exp(_log_interval((lower - shift) / ratio, (upper - shift) / ratio))
    return np.asarray(p - np.exp(epsilon + _log_interval(lower, upper)))


def _log_interval(lower: Floats, upper: Floats) -> Floats:
    """Return the log probability that a standard normal lies between two points."""
    # In the left tail, where small probabilities keep their digits.
    right = lower > 0
    low, high = np.where(right, -upper, lower), np.where(right, -lower, upper)
    log_low, log_high = special.log_ndtr(low), special.log_ndtr(high)
    return np.asarray(log_high + np.log1p(-np.exp(log_low - log_high)))
