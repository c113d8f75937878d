"""How evenly groups are served: worst, gap, coefficient of variation and the fairness index of per-group scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Fairness:
    """Spread of one score over groups.

    Parameters
    ----------
    mean, worst, gap : float
        ``gap`` is best minus worst.
    cov : float
        Population standard deviation over mean.
    index : float
        ``1 / (1 + cov**2)`` (Srewa et al., arXiv 2512.08786), which is Jain's index; 1 means equal.
    """

    mean: float
    worst: float
    gap: float
    cov: float
    index: float


def fairness(scores: Sequence[float]) -> Fairness:
    """Return the spread of per-group ``scores``.

    Raises
    ------
    ValueError
        If there is no score, a score is not finite, or their mean is not positive.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.size == 0 or not np.isfinite(values).all() or values.mean() <= 0:
        raise ValueError(f"fairness needs finite scores with a positive mean, not {list(scores)}")
    cov = float(values.std() / values.mean())
    low, high = float(values.min()), float(values.max())
    return Fairness(float(values.mean()), low, high - low, cov, 1.0 / (1.0 + cov**2))
