"""Distributed differential privacy: noisy integers whose secure sum needs no trusted server.

A client clips its vector to C, rotates it, scales it to a grid, rounds it and adds Skellam noise; the server sees only
the sum, and undoes scaling and rotation (Agarwal et al. 2021, arXiv 2110.04995).

The noise multiplier z is the standard deviation of the noise in the sum over the L2 norm that a client's integers can
have, rounding included. So z buys what it buys with Gaussian noise, up to the remainder of `skellam_rdp`, and what
rounding costs shows as noise: its standard deviation is z C (1 + inflation). The neighbouring data set is the one where
a client's integers are zeros; it still takes part and brings its noise. The server knows who takes part, so a random
cohort amplifies nothing here.

Every client's share is for the smallest cohort whose sum may be seen, less one: a client knows its own share, and may
take it off a model that it sees. More survivors bring more noise, never less, and the secure sum must give up a round
with fewer. Where several clients may conspire, the smallest cohort is to be counted without them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedalign.errors import UserError
from fedalign.privacy.clipping import clip
from fedalign.privacy.noise import Vector
from fedalign.privacy.rotation import padded_size, rotate, rotate_back
from fedalign.privacy.rounding import Integers, Rounding, round_within
from fedalign.privacy.skellam import integer_l1, skellam, skellam_quantile

_WRAP_PROBABILITY = 1e-9


@dataclass(frozen=True)
class SkellamCode:
    """How vectors become noisy integers and their sum becomes a vector.

    Parameters
    ----------
    size : int
        d, length of a client's vector.
    bound : float
        C, L2 norm that it is clipped to.
    noise_multiplier : float
        z.
    smallest_cohort : int
        Fewest clients whose sum may be seen.
    rounding : Rounding
    """

    size: int
    bound: float
    noise_multiplier: float
    smallest_cohort: int
    rounding: Rounding

    @property
    def padded(self) -> int:
        """Number of integers that a client sends."""
        return padded_size(self.size)

    @property
    def steps(self) -> float:
        """Grid steps to the clipping bound."""
        return self.rounding.steps(self.padded)

    @property
    def l2(self) -> float:
        """L2 sensitivity of the sum, in grid steps."""
        return self.rounding.norm_bound(self.steps, self.padded)

    @property
    def l1(self) -> float:
        """L1 sensitivity of the sum, in grid steps."""
        return integer_l1(self.l2, self.padded)

    @property
    def variance(self) -> float:
        """Variance of the noise that is accounted for, in squared grid steps."""
        return (self.noise_multiplier * self.l2) ** 2

    @property
    def share(self) -> float:
        """Variance of one client's part of the noise: without any one of the smallest cohort there is still enough."""
        return self.variance / max(1, self.smallest_cohort - 1)

    def std(self, clients: int) -> float:
        """Return the standard deviation of the noise in a decoded sum over ``clients``."""
        return math.sqrt(self.share * clients) * self.bound / self.steps

    def encode(self, vector: Vector, signs: Vector, generator: np.random.Generator) -> Integers:
        """Return a client's noisy integers.

        Parameters
        ----------
        vector : float64 array, shape (d,)
            Clipped here, whatever its norm.
        signs : float64 array, shape (padded,)
            The round's `random_signs`, known to all.
        generator : numpy.random.Generator
            From a `NoiseSource`; each client has its own.

        Returns
        -------
        int64 array, shape (padded,)

        Raises
        ------
        ValueError
            If the vector has NaN or infinite entries or another length.
        """
        if len(vector) != self.size:
            raise ValueError(f"a vector of {len(vector)} coordinates where {self.size} are expected")
        scaled = rotate(clip(vector, self.bound)[0] / self.bound, signs) * self.steps
        rounded = round_within(scaled, self.l2, generator)
        return rounded + skellam(self.padded, self.share, generator)

    def decode(self, total: Integers, signs: Vector) -> Vector:
        """Return the sum of the clients' clipped vectors with noise of `std`, shape (d,), from the sum of integers."""
        return rotate_back(total.astype(np.float64), signs, self.size) * (self.bound / self.steps)

    def largest(self, clients: int) -> float:
        """Return what no integer of a sum over ``clients`` exceeds in absolute value, but for one chance in 10**9.

        Three parts: the rotated sum, at most ``clients * steps`` long and subgaussian in every coordinate; less than 1
        a client for rounding; and the noise.
        """
        spread = math.sqrt(2 * math.log(4 * self.padded / _WRAP_PROBABILITY) / self.padded)
        variance = self.share * clients
        noise = skellam_quantile(variance, _WRAP_PROBABILITY / (2 * self.padded))
        return clients * (self.steps * min(1.0, spread) + 1) + noise

    def bits(self, clients: int) -> int:
        """Return how wide the integers of a secure sum over ``clients`` must be for it not to wrap around."""
        return math.ceil(math.log2(self.largest(clients) + 1)) + 1

    def check(self, bits: int, clients: int) -> None:
        """Refuse a secure sum that is too narrow; a sum that wraps around is still private, but worthless.

        Raises
        ------
        UserError
            If sums over ``clients`` need more than ``bits`` bits.
        """
        if self.bits(clients) > bits:
            raise UserError(
                f"sums over {clients} clients need {self.bits(clients)} bits, and the secure sum has {bits}; "
                "raise its bits, or the inflation that rounding may cause"
            )
