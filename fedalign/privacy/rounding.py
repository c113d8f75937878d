"""Random rounding to integers that cannot lengthen a vector beyond a bound (Kairouz et al. 2021, arXiv 2102.06387)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedalign.privacy.noise import Vector

Integers = NDArray[np.int64]

_ATTEMPTS = 100


@dataclass(frozen=True)
class Rounding:
    """Settings of conditional random rounding.

    Parameters
    ----------
    inflation : float
        By how much rounding may lengthen a clipped vector, as a share of the bound: the noise grows by as much. The
        grid is made as fine as that takes, about ``sqrt(d / (8 inflation))`` steps a bound for d coordinates.
    failure : float
        Bound on the probability that a vector must be rounded anew; beta in the paper, which takes exp(-1/2).
    """

    inflation: Annotated[float, Field(ge=1e-6, le=1)]
    failure: Annotated[float, Field(gt=0, lt=1)]

    def norm_bound(self, norm: float, size: int) -> float:
        """Return the bound on the L2 norm after rounding (Theorem 1 of the paper, for a grid of integers).

        The first term holds always, since no coordinate moves by 1 or more; the second with probability
        1 - ``failure`` at least.

        Parameters
        ----------
        norm : float
            Bound before rounding, in grid steps.
        size : int
            Number of coordinates.
        """
        likely = norm**2 + size / 4 + self._deviation * (norm + math.sqrt(size) / 2)
        return min(norm + math.sqrt(size), math.sqrt(likely))

    def steps(self, size: int) -> float:
        """Return the least norm, in grid steps, that rounding lengthens by ``inflation`` of it at most."""
        always = math.sqrt(size) / self.inflation
        # The positive root x of likely(x) = (1 + inflation)^2 x^2.
        square, linear = (1 + self.inflation) ** 2 - 1, self._deviation
        constant = size / 4 + linear * math.sqrt(size) / 2
        likely = (linear + math.sqrt(linear**2 + 4 * square * constant)) / (2 * square)
        return min(always, likely)

    @property
    def _deviation(self) -> float:
        return math.sqrt(2 * math.log(1 / self.failure))


def round_within(values: Vector, norm_bound: float, generator: np.random.Generator) -> Integers:
    """Return ``values`` rounded up or down at random, the nearer the likelier, until the norm is within the bound.

    Each coordinate is right on average before the condition. After very many failures, which `Rounding.norm_bound`
    makes all but impossible, every coordinate is rounded towards zero: that is always within the bound.

    Parameters
    ----------
    values : float64 array, shape (d,)
        Of norm ``norm_bound`` at most.
    norm_bound : float
    generator : numpy.random.Generator

    Returns
    -------
    int64 array, shape (d,)
        Of L2 norm ``norm_bound`` at most, with certainty.

    Raises
    ------
    ValueError
        If ``values`` are longer than the bound themselves.
    """
    if not np.linalg.norm(values) <= norm_bound:
        raise ValueError(f"a vector longer than {norm_bound:g} cannot be rounded to within it")
    floor = np.floor(values)
    for _ in range(_ATTEMPTS):
        rounded = floor + (generator.random(len(values)) < values - floor)
        if rounded @ rounded <= norm_bound**2:
            return rounded.astype(np.int64)
    return np.trunc(values).astype(np.int64)
