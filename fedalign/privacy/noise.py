"""Gaussian noise in float64, and where its randomness comes from: the operating system, or the run's streams."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedalign.errors import UserError
from fedalign.rng import Streams

Vector = NDArray[np.float64]

_GRID_BITS = 16
_RESOLUTION_BITS = 30


class NoiseSource(ABC):
    """Where the randomness of privacy noise comes from.

    Attributes
    ----------
    secret : bool
        Whether nobody can compute the noise again. Without that, the guarantee does not hold against whoever
        knows the seed, and the report must say so.
    """

    secret: ClassVar[bool]

    @abstractmethod
    def generator(self, streams: Streams, purpose: str) -> np.random.Generator:
        """Return the generator of the noise for ``purpose`` at the place of ``streams``."""


@dataclass(frozen=True)
class SystemNoise(NoiseSource):
    """Noise that nobody can repeat or predict: a fresh generator a call, keyed with 32 bytes of the system's entropy.

    The generator is Philox, a keyed function of a counter. NumPy's default, PCG64, would do for statistics, but its
    state can be recovered from its output (Bouillaguet et al. 2020), so that noise seen in one release would
    foretell the rest of it.
    """

    secret: ClassVar[bool] = True

    def generator(self, streams: Streams, purpose: str) -> np.random.Generator:
        """Return a generator with a fresh secret key; ``streams`` and ``purpose`` have no part in it."""
        entropy = os.urandom(32)
        key, counter = (int.from_bytes(half, "big") for half in (entropy[:16], entropy[16:]))
        return np.random.Generator(np.random.Philox(key=key, counter=counter))


@dataclass(frozen=True)
class SeededNoise(NoiseSource):
    """Noise that follows from the run's seed, for tests and simulations: the seed takes it off again."""

    secret: ClassVar[bool] = False

    def generator(self, streams: Streams, purpose: str) -> np.random.Generator:
        """Return the stream of ``purpose``; another round, client or phase has another."""
        return streams.numpy(f"privacy noise/{purpose}")


def gaussian(size: int, std: float, generator: np.random.Generator) -> Vector:
    """Return ``size`` independent draws of N(0, std**2) in float64, shape (size,).

    Raises
    ------
    ValueError
        If ``std`` is negative, infinite or not a number.
    """
    _check_std(std)
    return generator.standard_normal(size) * std


def check_resolution(std: float, largest_value: float) -> None:
    """Refuse noise that float64 cannot carry beside the values that it hides.

    The low bits of a noisy float64 tell of the value below (Mironov 2012) unless the noise spans very many
    representable numbers. Here that is 2**30 of them at least, wherever the sum may lie.

    Parameters
    ----------
    std : float
        Standard deviation of the noise; 0 is no noise, and passes.
    largest_value : float
        Bound on the absolute values that the noise is added to.

    Raises
    ------
    UserError
        If the noise is too small beside the values.
    ValueError
        If ``std`` is negative, infinite or not a number.
    """
    _check_std(std)
    finest = 2.0**_RESOLUTION_BITS * float(np.spacing(max(abs(largest_value), std)))
    if std and not std >= finest:
        raise UserError(
            f"privacy noise of standard deviation {std:g} is lost in float64 beside values up to {largest_value:g}; "
            "raise the noise multiplier or lower the clipping bound"
        )


def add_gaussian(values: Vector, std: float, generator: np.random.Generator) -> Vector:
    """Return ``values`` plus Gaussian noise, on a grid that does not depend on ``values``.

    The grid has a power of two below ``std * 2**-16`` as its step: far too fine to matter, far coarser than float64,
    so that the set of possible results is the same whatever the values are.

    Parameters
    ----------
    values : float64 array, shape (d,)
        What is released, before noise.
    std : float
        Standard deviation of the noise; 0 returns ``values`` as they are.
    generator : numpy.random.Generator
        From a `NoiseSource`.

    Returns
    -------
    float64 array, shape (d,)

    Raises
    ------
    UserError
        If the noise is too small beside the values.
    """
    check_resolution(std, float(np.abs(values).max(initial=0.0)))
    if std == 0:
        return values.copy()
    return to_grid(values + gaussian(len(values), std, generator), std)


def to_grid(noisy: Vector, std: float) -> Vector:
    """Return ``noisy`` rounded to multiples of the largest power of two at most ``std * 2**-16``."""
    step = 2.0 ** (math.floor(math.log2(std)) - _GRID_BITS)
    return np.round(noisy / step) * step


def _check_std(std: float) -> None:
    if not (math.isfinite(std) and std >= 0):
        raise ValueError(f"the standard deviation of noise must be finite and at least 0, not {std}")
