"""Exact confidence limits of a share that was counted: Clopper and Pearson's, one side at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special


def clopper_pearson_upper(successes: ArrayLike, trials: int, alpha: float) -> NDArray[np.float64]:
    """Return the upper limit of a binomial share; it lies below the true share with probability at most ``alpha``.

    Parameters
    ----------
    successes : int array of any shape
        Out of ``trials`` each.
    trials : int
    alpha : float
        Of this side alone; a two-sided interval gives each side half of its own.

    References
    ----------
    Clopper and Pearson 1934.
    """
    count = np.asarray(successes)
    # The failures of a sure share are clamped to 1 only to keep the unused branch inside the function's domain.
    limit = special.betainccinv(count + 1, np.maximum(trials - count, 1), alpha)
    return np.where(count < trials, limit, 1.0)


def clopper_pearson_lower(successes: ArrayLike, trials: int, alpha: float) -> NDArray[np.float64]:
    """Return the lower limit of a binomial share; it lies above the true share with probability at most ``alpha``."""
    return 1.0 - clopper_pearson_upper(trials - np.asarray(successes), trials, alpha)
