"""Noise that later rounds partly take back: banded matrix factorisation, for cohorts that nobody can sample at random.

DP-FTRL (Kairouz et al. 2021) in the form of Choquette-Choo et al. 2023 (arXiv 2306.08153). With a row per round, the
contributions X are released as X + C^-1 Z, where Z is independent Gaussian noise and C a banded lower triangular
Toeplitz matrix. Sums over rounds, which are what a model accumulates, then carry less noise than independent noise of
the same guarantee would leave. C holds the first b coefficients of (1 - x)^(-1/2), the square root of the prefix-sum
matrix (Kalinin and Lampert 2024, arXiv 2405.13763); b = 1 is independent noise.

What it protects. X + C^-1 Z is a function of C X + Z, a Gaussian release, so only the norm of C U matters, with U what
one client contributes: a row of norm ``bound`` at most in each round that it takes part in. C U is a sum over those
rounds t of column t of C times row t of U. Column t is zero outside rows t to t + b - 1, so if any two of a client's
rounds are at least b apart, the terms have no row in common, and |C U|^2 <= k max_t |column t|^2 bound^2 for k
rounds. With noise of standard deviation z * bound * max_t |column t|, the whole training costs that client what one
Gaussian release of noise multiplier z / sqrt(k) costs. That holds also where a round's contributions depend on earlier
results (Denisov et al. 2022, Theorem 2.1), and it needs no random cohort. Nothing holds for a client that comes back
earlier than b rounds: the caller must keep it out.

Libraries for such noise exist for JAX; this is the part that a federation needs, on NumPy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedalign.privacy.noise import Vector, gaussian


@dataclass(frozen=True)
class BandedNoise:
    """Settings of banded noise.

    Parameters
    ----------
    bands : int
        b: a client may take part again after b rounds at the earliest. The server keeps b - 1 vectors of noise.
    """

    bands: Annotated[int, Field(ge=1)]

    def std(self, noise_multiplier: float, bound: float, rounds: int) -> float:
        """Return the standard deviation of Z for clipping bound ``bound``, which must not change over the rounds."""
        return noise_multiplier * bound * column_norm(self.bands, rounds)

    def start(self, size: int) -> NDArray[np.float64]:
        """Return the history before the first round, shape (0, size)."""
        return np.zeros((0, size))

    def next(
        self, generator: np.random.Generator, std: float, history: NDArray[np.float64]
    ) -> tuple[Vector, NDArray[np.float64]]:
        """Return the noise of a round, w_t = z_t - sum_{i=1}^{b-1} c_i w_{t-i}, and the history with it.

        Parameters
        ----------
        generator : numpy.random.Generator
            From a `NoiseSource`.
        std : float
            Of `std`; the same in every round.
        history : float64 array, shape (h, d)
            The noise of the h <= b - 1 last rounds, newest first. It is as secret as the noise is, and belongs in the
            checkpoint: a resumed run that forgot it would add noise that cancels nothing.

        Returns
        -------
        noise : float64 array, shape (d,)
        history : float64 array, shape (min(h + 1, b - 1), d)
        """
        past = coefficients(self.bands)[1 : len(history) + 1]
        noise = gaussian(history.shape[1], std, generator) - past @ history
        return noise, np.concatenate([noise[None], history])[: self.bands - 1]


def coefficients(bands: int) -> Vector:
    """Return the first ``bands`` coefficients of (1 - x)^(-1/2): 1, 1/2, 3/8, 5/16, ..."""
    index = np.arange(1, bands)
    return np.concatenate([np.ones(1), np.cumprod((2 * index - 1) / (2 * index))])


def column_norm(bands: int, rounds: int) -> float:
    """Return the largest L2 norm of a column of C over ``rounds`` rounds; it is the first column's."""
    return float(np.linalg.norm(coefficients(min(bands, rounds))))


def sensitivity(participations: int) -> float:
    """Return the L2 sensitivity of C X in units of bound * `column_norm`, for rounds at least ``bands`` apart."""
    return math.sqrt(participations)


def most_participations(rounds: int, separation: int) -> int:
    """Return in how many of ``rounds`` rounds a client can take part if any two are ``separation`` apart at least."""
    return -(-rounds // separation)
