"""Random rotation by a randomised Hadamard transform: it spreads a vector's length evenly over its coordinates."""

from __future__ import annotations

import math

import numpy as np

from fedalign.privacy.noise import Vector


def padded_size(size: int) -> int:
    """Return the smallest power of two that holds ``size`` coordinates."""
    return 1 << max(size - 1, 0).bit_length()


def random_signs(size: int, generator: np.random.Generator) -> Vector:
    """Return the public signs of a rotation, shape (padded_size(size),).

    All clients of a round and the server need the same signs, so the generator is one of the run's streams at the
    round, without a client. The rotation protects nothing, so the signs are no secret.
    """
    return generator.choice(np.array([-1.0, 1.0]), padded_size(size))


def rotate(vector: Vector, signs: Vector) -> Vector:
    """Return H D x / sqrt(n): ``vector`` padded with zeros to the length of ``signs``, its signs flipped, transformed.

    Norms and angles are kept. A coordinate of the result is subgaussian with variance |x|^2 / n over the signs
    (Kairouz et al. 2021, arXiv 2102.06387), however uneven x is.

    Parameters
    ----------
    vector : float64 array, shape (d,)
    signs : float64 array, shape (n,)
        From `random_signs`.

    Returns
    -------
    float64 array, shape (n,)
    """
    padded = np.zeros(len(signs))
    padded[: len(vector)] = vector
    return walsh_hadamard(padded * signs)


def rotate_back(rotated: Vector, signs: Vector, size: int) -> Vector:
    """Return the vector of ``size`` coordinates that `rotate` made ``rotated`` of."""
    return (walsh_hadamard(rotated) * signs)[:size]


def walsh_hadamard(vector: Vector) -> Vector:
    """Return the orthonormal Walsh-Hadamard transform of a vector whose length n is a power of two; its own inverse.

    O(n log n): each pass puts sum and difference of the two halves side by side.
    """
    for _ in range(len(vector).bit_length() - 1):
        first, second = vector.reshape(2, -1)
        vector = np.stack([first + second, first - second], axis=1).reshape(-1)
    return vector / math.sqrt(len(vector))
