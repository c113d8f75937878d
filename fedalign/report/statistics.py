"""Means over seeds with their confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95
"""Confidence level of every interval."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Parameters
    ----------
    mean : float
    half_width : float or None
        The interval is ``mean`` plus or minus this; None for a single seed, which says nothing about spread.
    n : int
        Number of seeds.
    """

    mean: float
    half_width: float | None
    n: int


def mean_interval(values: Sequence[float]) -> Estimate:
    """Return the mean of independent values with Student's interval, t(n - 1) * s / sqrt(n).

    Raises
    ------
    ValueError
        If there are no values.
    """
    n = len(values)
    if n == 0:
        raise ValueError("no values to take the mean of")
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean, None, 1)
    t = float(stats.t.ppf(0.5 + LEVEL / 2, n - 1))
    return Estimate(mean, t * float(np.std(values, ddof=1)) / math.sqrt(n), n)


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Estimate | None:
    """Return the mean of ``values - baseline`` over the seeds that both have; None when they share no seed.

    Pairing by seed takes out what a seed does to both (its data, its split), so that the interval is of the
    difference alone.
    """
    shared = [seed for seed in values if seed in baseline]
    return mean_interval([values[seed] - baseline[seed] for seed in shared]) if shared else None
