"""What hides a client in the sum of a round: a mechanism, of which the Gaussian one adds noise on the server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedalign.errors import UserError
from fedalign.privacy.events import Event, FixedSizeGaussianEvent, GaussianEvent, PoissonGaussianEvent
from fedalign.privacy.matrix_noise import BandedNoise
from fedalign.privacy.noise import Vector, add_gaussian, check_resolution, to_grid
from fedalign.privacy.scheme import Sampling, Scheme
from fedalign.rng import Streams

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Scale:
    """How much one client can move a sum, and the noise that hides it.

    Parameters
    ----------
    bound : float
        L2 bound of a client's clipped vector.
    noise_multiplier : float
        Standard deviation of the noise of the sum over ``bound``.
    """

    bound: float
    noise_multiplier: float


class Mechanism(ABC):
    """Makes a sum of clipped vectors private; the ``privacy/mechanism`` config group.

    Attributes
    ----------
    distributed : bool
        Whether the clients add the noise, so that nobody sees a sum without it.
    name : str
        As the report names it.
    """

    distributed: ClassVar[bool] = False
    name: ClassVar[str]

    def check(self, sampling: Sampling) -> None:  # noqa: B027 - most go with any
        """Refuse cohorts that the mechanism's account does not hold for.

        Raises
        ------
        UserError
            Naming the sampler and the fix.
        """

    @abstractmethod
    def event(self, noise_multiplier: float, sampling: Sampling, size: int) -> Event:
        """Return what happens to a client in a round, for the accountant.

        Parameters
        ----------
        noise_multiplier : float
        sampling : Sampling
        size : int
            Length of the vector.
        """

    def amplified(self, sampling: Sampling) -> bool:
        """Tell whether the event already counts that a client may not be in the cohort.

        Where it does not, a client is charged for the rounds that it takes part in.
        """
        return sampling.scheme in (Scheme.POISSON, Scheme.FIXED_SIZE)

    @abstractmethod
    def release(
        self, total: Vector, scale: Scale, generator: np.random.Generator, history: Vector
    ) -> tuple[Vector, Vector]:
        """Return the sum as it may be seen, and what the next round must know of this round's noise.

        Parameters
        ----------
        total : float64 array, shape (d,)
            Sum of clipped vectors.
        scale : Scale
        generator : numpy.random.Generator
        history : float64 array, shape (rounds remembered, d)
        """


@dataclass(frozen=True)
class Gaussian(Mechanism):
    """Independent Gaussian noise in every round, added by the server (McMahan et al. 2018, arXiv 1710.06963)."""

    name: ClassVar[str] = "gaussian"

    def event(self, noise_multiplier: float, sampling: Sampling, size: int) -> Event:
        """Return a Gaussian release, amplified as the cohorts were drawn."""
        if sampling.scheme is Scheme.POISSON:
            return PoissonGaussianEvent(sampling.rate, noise_multiplier)
        if sampling.scheme is Scheme.FIXED_SIZE:
            return FixedSizeGaussianEvent(sampling.population, round(sampling.expected), noise_multiplier)
        return GaussianEvent(noise_multiplier)

    def release(
        self, total: Vector, scale: Scale, generator: np.random.Generator, history: Vector
    ) -> tuple[Vector, Vector]:
        """Return the sum with noise; nothing is remembered."""
        return add_gaussian(total, scale.noise_multiplier * scale.bound, generator), history


@dataclass(frozen=True)
class Banded(Mechanism):
    """Noise that later rounds partly take back (DP-FTRL), for clients that cannot be drawn at random.

    Parameters
    ----------
    bands : int
        Over how many rounds; a client's rounds must be as far apart.
    """

    name: ClassVar[str] = "banded"
    bands: Annotated[int, Field(ge=1)]

    def check(self, sampling: Sampling) -> None:
        """Refuse clients that may come back before their noise is through."""
        if sampling.separation < self.bands:
            raise UserError(
                f"privacy.mechanism.bands={self.bands}: a client's rounds must be as far apart, and with this "
                f"federation.sampler they are {sampling.separation}; set federation/sampler=cyclic with at least "
                f"{self.bands} groups"
            )

    def event(self, noise_multiplier: float, sampling: Sampling, size: int) -> Event:
        """Return a Gaussian release: a client's rounds have no noise in common."""
        return GaussianEvent(noise_multiplier)

    def release(
        self, total: Vector, scale: Scale, generator: np.random.Generator, history: Vector
    ) -> tuple[Vector, Vector]:
        """Return the sum with this round's noise, less what earlier rounds had too much of."""
        noise = BandedNoise(self.bands)
        std = noise.std(scale.noise_multiplier, scale.bound, self.bands)
        check_resolution(std, float(np.abs(total).max(initial=0.0)))
        drawn, remembered = noise.next(generator, std, history)
        return to_grid(total + drawn, std) if std else total, remembered


class DistributedMechanism(Mechanism):
    """A mechanism whose noise the clients add, each its share, before a secure sum of integers."""

    distributed: ClassVar[bool] = True

    def amplified(self, sampling: Sampling) -> bool:
        """Return False: the server, from which the sum is hidden, knows who takes part."""
        return False

    @abstractmethod
    def encoded_length(self, size: int) -> int:
        """Return how many integers a vector of ``size`` numbers becomes."""

    @abstractmethod
    def check_width(self, size: int, bits: int, minimum: int, cohort: int, noise_multiplier: float) -> None:
        """Refuse a secure sum of too few bits for sums over ``cohort`` clients.

        Raises
        ------
        UserError
            Naming the bits that are needed.
        """

    @abstractmethod
    def encode(
        self, vector: Vector, scale: Scale, minimum: int, public: Streams, secret: np.random.Generator
    ) -> Integers:
        """Return a client's clipped vector with its share of the noise.

        Parameters
        ----------
        vector : float64 array, shape (d,)
            Of a norm of at most ``scale.bound``.
        scale : Scale
            The noise multiplier is that of the sum.
        minimum : int
            The smallest cohort whose shares of noise must do.
        public : Streams
            Of the round: what all clients and the server draw alike.
        secret : numpy.random.Generator

        Returns
        -------
        int64 array, shape (encoded_length(d),)
        """

    @abstractmethod
    def decode(self, total: Integers, size: int, scale: Scale, minimum: int, public: Streams) -> Vector:
        """Return the noisy sum of vectors, shape (size,), that a sum of encoded vectors stands for."""

    def release(
        self, total: Vector, scale: Scale, generator: np.random.Generator, history: Vector
    ) -> tuple[Vector, Vector]:
        """Return the sum as it is: the noise is in it."""
        return total, history
