"""Flat clipping: the bound holds for any finite vector, and invalid ones are refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedalign.privacy.clipping import clip

FINITE = st.floats(allow_nan=False, allow_infinity=False)
VECTORS = arrays.arrays(np.float64, st.integers(0, 40), elements=FINITE)
BOUNDS = st.floats(1e-100, 1e100)


def norm_of(vector: np.ndarray) -> float:
    """Exact up to the last bit, and safe from overflow: the oracle."""
    return math.hypot(*vector.tolist())


@given(vector=VECTORS, bound=BOUNDS)
@example(vector=np.zeros(3), bound=1.0)
@example(vector=np.array([1e30, -1e30, 3.0]), bound=1.0)
@example(vector=np.full(1000, 1e300), bound=0.1)
@example(vector=np.full(1000, np.finfo(np.float64).max), bound=1e-100)
@example(vector=np.full(7, 5e-324), bound=1e-100)
@example(vector=np.array([1e300, 5e-324]), bound=1e100)
def test_the_norm_is_within_the_bound_whatever_the_vector(vector: np.ndarray, bound: float) -> None:
    clipped, norm = clip(vector, bound)
    assert clipped.dtype == np.float64
    assert clipped.shape == vector.shape
    assert np.isfinite(clipped).all()
    assert norm_of(clipped) <= bound * (1 + 1e-15)
    assert norm == pytest.approx(norm_of(vector), rel=1e-12)


@given(vector=VECTORS, bound=BOUNDS)
def test_a_vector_within_the_bound_passes_unchanged_and_so_clipping_twice_is_clipping_once(
    vector: np.ndarray, bound: float
) -> None:
    once, norm = clip(vector, bound)
    if norm <= bound:
        assert np.array_equal(once, vector)
    assert np.array_equal(clip(once, bound)[0], once)


@given(vector=arrays.arrays(np.float64, st.integers(1, 40), elements=st.floats(-1e3, 1e3)), bound=st.floats(1e-3, 10))
def test_clipping_keeps_the_direction_and_reaches_the_bound(vector: np.ndarray, bound: float) -> None:
    clipped, norm = clip(vector, bound)
    expected = vector * min(1.0, bound / norm) if norm else vector
    np.testing.assert_allclose(clipped, expected, rtol=1e-11, atol=1e-300)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.int64])
def test_narrow_types_are_measured_in_float64(kind: type) -> None:
    vector = np.full(100_000, 60_000, dtype=kind)  # the sum of squares overflows float16, and float32 loses it
    clipped, norm = clip(vector, 1.0)
    assert norm == pytest.approx(float(vector[0]) * math.sqrt(100_000), rel=1e-12)
    assert norm_of(clipped) == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_vector_that_no_scaling_mends_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        clip(np.array([0.0, value]), 1.0)


@pytest.mark.parametrize("bound", [0.0, -1.0, np.nan, 5e-324])
def test_a_bound_must_be_positive(bound: float) -> None:
    with pytest.raises(ValueError, match="bound must be positive"):
        clip(np.ones(2), bound)


def test_one_tensor_of_several_is_not_a_contribution() -> None:
    with pytest.raises(ValueError, match="flat"):
        clip(np.ones((2, 2)), 1.0)


def test_an_infinite_bound_and_an_empty_vector_are_left_alone() -> None:
    assert clip(np.full(3, 1e300), math.inf)[0].tolist() == [1e300] * 3
    assert clip(np.zeros(0), 1.0)[1] == 0.0


def test_the_vector_that_is_clipped_is_not_written_to() -> None:
    vector = np.ones(3)
    clip(vector, 10.0)[0][0] = 5
    assert vector.tolist() == [1, 1, 1]
