"""Flat clipping: the whole contribution as one vector, scaled down to an L2 norm."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Leaves room for the rounding of the products, so that the result is within the bound and clipping it changes nothing.
_MARGIN = 1 - 1e-12


def clip(vector: ArrayLike, bound: float) -> tuple[NDArray[np.float64], float]:
    """Return ``vector`` scaled to L2 norm ``bound`` at most, and the norm that it had.

    All of a contribution must be in the one vector: the bound is on what a client can change, and a bound on each
    tensor is not that. The norm is taken of the vector divided by its largest entry, so nothing overflows.

    Parameters
    ----------
    vector : array, shape (d,)
        Of any real type; float16 and float32 are exact in float64.
    bound : float
        Positive; infinity returns the vector as it is.

    Returns
    -------
    clipped : float64 array, shape (d,)
        A copy; equal to ``vector`` where that is within the bound.
    norm : float
        L2 norm before clipping; infinite where it exceeds the range of float64.

    Raises
    ------
    ValueError
        If the vector has a NaN or an infinite entry or is not flat, or if the bound is not positive. No scaling mends
        such a vector: leave it out and count it.
    """
    if not bound >= np.finfo(np.float64).tiny:
        raise ValueError(f"a clipping bound must be positive, not {bound}")
    values = np.array(vector, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"a contribution is clipped as one flat vector, not in shape {values.shape}")
    largest = float(np.abs(values).max(initial=0.0))
    if not math.isfinite(largest):
        raise ValueError("a contribution with NaN or infinite entries cannot be clipped")
    if largest == 0:
        return values, 0.0
    unit = values / largest
    length = float(np.linalg.norm(unit))
    norm = largest * length
    return (values if norm <= bound else unit * (bound * _MARGIN / length)), norm
