"""Rényi divergence of the Poisson-sampled Gaussian mechanism, at whole and at fractional orders."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, logsumexp

Array = NDArray[np.float64]

_TAIL = 40.0
_STEP = 0.02
_LEAST_NOISE = 1e-3


def poisson_gaussian_rdp(rate: float, noise_multiplier: float, orders: Array) -> Array:
    """Return the Rényi divergence of ``(1 - q) N(0, z**2) + q N(1, z**2)`` from ``N(0, z**2)`` at each order.

    That direction is the larger of the two, and the pair is the worst for adding or removing a unit (Mironov, Talwar
    and Zhang 2019, arXiv 1908.10530, Theorem 4 and section 3). dp-accounting sums a series for fractional orders that
    does not converge near 1, where large epsilons have their best order; here they are integrated.

    Parameters
    ----------
    rate : float
        q, in (0, 1].
    noise_multiplier : float
        z, at least 0.
    orders : float64 array, shape (n,)
        Above 1.

    Returns
    -------
    float64 array, shape (n,)
        Infinite below a noise multiplier of 0.001, where nothing is protected and the numbers grow out of bounds.
    """
    if noise_multiplier < _LEAST_NOISE:
        return np.full(orders.shape, np.inf)
    if rate == 1:
        return orders / (2 * noise_multiplier**2)
    logs = [
        _log_moment_whole(rate, noise_multiplier, int(order))
        if float(order).is_integer()
        else _log_moment(rate, noise_multiplier, float(order))
        for order in orders
    ]
    return np.maximum(np.asarray(logs) / (orders - 1), 0.0)


def _log_moment_whole(rate: float, noise_multiplier: float, order: int) -> float:
    """Return the log of the likelihood ratio's moment as a binomial sum (equation 5 of the paper).

    The binomial weights sum to 1, which is taken off every term so that a moment close to 1 keeps its digits.
    """
    k = np.arange(2, order + 1, dtype=np.float64)
    binomial = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
    weight = binomial + k * np.log(rate) + (order - k) * np.log1p(-rate)
    exponent = k * (k - 1) / (2 * noise_multiplier**2)
    return float(np.logaddexp(0.0, logsumexp(weight + exponent + np.log(-np.expm1(-exponent)))))


def _log_moment(rate: float, noise_multiplier: float, order: float) -> float:
    """Return the log of the likelihood ratio's moment by the trapezoidal rule.

    The mean of the ratio is 1, so ``ratio**order - 1 - order * (ratio - 1)``, which is never negative, has the moment
    less 1 as its mean. The rule converges exponentially for such integrands.
    """
    x = np.arange(-_TAIL, order / noise_multiplier + _TAIL, _STEP)
    exponent = x / noise_multiplier - 1 / (2 * noise_multiplier**2)
    log_ratio = np.logaddexp(np.log1p(-rate), np.log(rate) + exponent)
    power = order * log_ratio
    large = power > 1
    near = np.log1p(rate * np.expm1(np.where(large, 0.0, exponent)))
    excess = np.expm1(order * near) - order * np.expm1(near)
    far = -np.expm1(-power) - order * (np.exp(log_ratio - power) - np.exp(-power))
    with np.errstate(divide="ignore", invalid="ignore"):
        log_excess = np.where(large, power + np.log(far), np.log(np.maximum(excess, 0.0)))
    log_density = -(x**2) / 2 - np.log(2 * np.pi) / 2
    return float(np.logaddexp(0.0, logsumexp(log_excess + log_density) + np.log(_STEP)))
