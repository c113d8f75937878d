"""Random rounding: the norm it may reach, its mean, and the grid that keeps its price small."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedalign.privacy.rounding import Rounding, round_within

PAPER = Rounding(inflation=0.01, failure=math.exp(-0.5))


def vector_of(size: int, norm: float, seed: int) -> np.ndarray:
    vector = np.random.default_rng(seed).standard_normal(size)
    return vector * norm / np.linalg.norm(vector)


@given(size=st.integers(1, 300), norm=st.floats(0.01, 1e4), inflation=st.floats(1e-4, 1), seed=st.integers(0, 50))
def test_integers_stay_within_the_bound_and_next_to_the_values(
    size: int, norm: float, inflation: float, seed: int
) -> None:
    rounding, values = Rounding(inflation, 0.6), vector_of(size, norm, seed)
    bound = rounding.norm_bound(norm * (1 + 1e-12), size)
    rounded = round_within(values, bound, np.random.default_rng(seed))
    assert rounded.dtype == np.int64
    assert np.abs(rounded - values).max() < 1
    assert sum(int(value) ** 2 for value in rounded) <= bound**2


@pytest.mark.parametrize("failure", [0.1, math.exp(-0.5)])
@pytest.mark.parametrize("size", [4, 100, 4096])
def test_the_likely_bound_fails_no_more_often_than_it_says(failure: float, size: int) -> None:
    generator, worst = np.random.default_rng(0), np.full(size, 0.5)  # every coordinate as uncertain as can be
    norm = float(np.linalg.norm(worst))
    bound = Rounding(0.01, failure).norm_bound(norm, size)
    lengths = np.linalg.norm(generator.integers(0, 2, (2000, size)), axis=1)
    assert (lengths > bound).mean() <= failure
    assert bound <= norm + math.sqrt(size)


def test_a_vector_that_comes_out_too_long_is_rounded_anew() -> None:
    values, generator = np.full(100, 0.5), np.random.default_rng(0)
    lengths = [int(round_within(values, math.sqrt(45), generator).sum()) for _ in range(300)]
    assert max(lengths) <= 45  # without the condition more than 8 of 10 would be above it
    assert len(set(lengths)) > 5


def test_when_no_rounding_fits_the_vector_shrinks() -> None:
    values = np.array([2.9, -2.9, 0.0, 0.99])
    norm = float(np.linalg.norm(values))
    assert all(np.linalg.norm(round_within(values, norm, np.random.default_rng(seed))) <= norm for seed in range(20))
    assert round_within(np.full(400, 0.5), 10.0, np.random.default_rng(0)).tolist() == [0] * 400


def test_rounding_is_right_on_average() -> None:
    values, generator = np.array([0.25, -0.25, 7.9, -3.5, 0.0, 2.0]), np.random.default_rng(0)
    rounds = np.stack([round_within(values, 100.0, generator) for _ in range(20_000)])
    np.testing.assert_allclose(rounds.mean(0), values, atol=0.02)
    assert set(rounds[:, 0].tolist()) == {0, 1}


def test_a_vector_beyond_the_bound_is_an_error() -> None:
    for values in (np.array([2.0]), np.array([np.nan])):
        with pytest.raises(ValueError, match="cannot be rounded"):
            round_within(values, 1.0, np.random.default_rng(0))


@given(size=st.integers(1, 2**24), inflation=st.floats(1e-4, 1), failure=st.floats(0.01, 0.99))
def test_the_grid_is_just_fine_enough_for_the_inflation(size: int, inflation: float, failure: float) -> None:
    rounding = Rounding(inflation, failure)
    steps = rounding.steps(size)
    assert rounding.norm_bound(steps, size) == pytest.approx((1 + inflation) * steps, rel=1e-9)
    assert rounding.norm_bound(0.9 * steps, size) > (1 + inflation) * 0.9 * steps


def test_the_grid_of_a_large_model_follows_from_half_a_step_a_coordinate() -> None:
    assert PAPER.steps(2**20) == pytest.approx(math.sqrt(2**20 / (8 * 0.01)), rel=0.02)
