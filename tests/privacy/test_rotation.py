"""The randomised Hadamard transform against the dense matrix, its inverse, and what it is for."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import hadamard

from fedalign.privacy.rotation import padded_size, random_signs, rotate, rotate_back, walsh_hadamard
from fedalign.rng import Streams


def signs_of(size: int, seed: int = 0) -> np.ndarray:
    return random_signs(size, Streams(seed).numpy("rotation"))


@pytest.mark.parametrize(("size", "padded"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (1000, 1024), (2**20 + 1, 2**21)])
def test_vectors_are_padded_to_the_next_power_of_two(size: int, padded: int) -> None:
    assert padded_size(size) == padded
    assert set(np.unique(signs_of(size)).tolist()) <= {-1.0, 1.0}


@pytest.mark.parametrize("size", [1, 2, 8, 64, 512])
def test_the_fast_transform_is_the_dense_one(size: int) -> None:
    vector = np.random.default_rng(0).standard_normal(size)
    dense = hadamard(size).astype(float) / np.sqrt(size)
    np.testing.assert_allclose(walsh_hadamard(vector), dense @ vector, atol=1e-13)


@given(size=st.integers(1, 200), seed=st.integers(0, 99), scale=st.floats(1e-6, 1e6))
def test_rotation_keeps_the_norm_and_can_be_undone(size: int, seed: int, scale: float) -> None:
    vector, signs = scale * np.random.default_rng(seed).standard_normal(size), signs_of(size, seed)
    rotated = rotate(vector, signs)
    assert rotated.shape == (padded_size(size),)
    assert np.linalg.norm(rotated) == pytest.approx(np.linalg.norm(vector), rel=1e-12)
    np.testing.assert_allclose(rotate_back(rotated, signs, size), vector, atol=1e-12 * scale)


def test_the_rotation_is_linear_so_sums_can_be_rotated_back() -> None:
    first, second = np.random.default_rng(0).standard_normal((2, 50))
    signs = signs_of(50)
    np.testing.assert_allclose(rotate_back(rotate(first, signs) + rotate(second, signs), signs, 50), first + second)


def test_a_vector_with_all_its_length_in_few_coordinates_is_spread_out() -> None:
    size = 2**14
    vector = np.zeros(size)
    vector[:3] = 100.0, -50.0, 7.0
    rotated = rotate(vector, signs_of(size))
    assert np.abs(rotated).max() <= np.linalg.norm(vector) / np.sqrt(size) * np.sqrt(2 * np.log(2 * size / 1e-3))


def test_rounds_have_different_signs_and_clients_of_a_round_the_same() -> None:
    run = Streams(3).at(phase="train")
    first, again, other = (random_signs(64, run.at(round=r).numpy("rotation")) for r in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_million_coordinates_take_less_than_a_second() -> None:
    vector, signs = np.ones(2**20), signs_of(2**20)
    started = time.process_time()
    rotate(vector, signs)
    assert time.process_time() - started < 1
