"""Banded noise: its covariance, the sensitivity that it claims, and what it saves."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import toeplitz
from scipy.special import binom

from fedalign.privacy.matrix_noise import BandedNoise, coefficients, column_norm, most_participations, sensitivity


def strategy(bands: int, rounds: int) -> np.ndarray:
    """Return C as a dense matrix, from binomial coefficients: the oracle."""
    column = [abs(binom(-0.5, i)) if i < bands else 0.0 for i in range(rounds)]
    return np.tril(toeplitz(column))


def run(bands: int, rounds: int, size: int, std: float, seed: int = 0) -> np.ndarray:
    """Return the noise of all rounds, shape (rounds, size)."""
    settings, generator = BandedNoise(bands), np.random.default_rng(seed)
    history, rows = settings.start(size), []
    for _ in range(rounds):
        noise, history = settings.next(generator, std, history)
        rows.append(noise)
        assert len(history) <= bands - 1
    return np.stack(rows)


def test_coefficients_are_those_of_the_square_root_of_prefix_sums() -> None:
    assert coefficients(5).tolist() == [1, 1 / 2, 3 / 8, 5 / 16, 35 / 128]
    square_root = strategy(30, 30)
    np.testing.assert_allclose(square_root @ square_root, np.tril(np.ones((30, 30))), atol=1e-12)
    np.testing.assert_allclose(square_root[:, 0], coefficients(30), rtol=1e-12)


@pytest.mark.parametrize(("bands", "rounds"), [(1, 5), (2, 9), (5, 12), (20, 8)])
def test_the_noise_is_the_independent_noise_divided_by_the_matrix(bands: int, rounds: int) -> None:
    noise = run(bands, rounds, 3, 0.7, seed=4)
    independent = 0.7 * np.random.default_rng(4).standard_normal((rounds, 3))
    np.testing.assert_allclose(noise, np.linalg.solve(strategy(bands, rounds), independent), atol=1e-12)


def test_the_covariance_over_rounds_is_that_of_the_factorisation() -> None:
    bands, rounds, size, std = 4, 8, 200_000, 1.3
    noise = run(bands, rounds, size, std)
    inverse = np.linalg.inv(strategy(bands, rounds))
    expected = std**2 * inverse @ inverse.T
    error = np.abs(noise @ noise.T / size - expected) / np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    assert error.max() < 0.02


def test_one_band_is_independent_noise_and_needs_no_history() -> None:
    noise = run(1, 6, 100_000, 1.0)
    assert np.abs(np.corrcoef(noise) - np.eye(6)).max() < 6 / math.sqrt(100_000)
    assert BandedNoise(1).next(np.random.default_rng(0), 1.0, np.zeros((0, 3)))[1].shape == (0, 3)


def test_a_run_that_is_resumed_from_its_history_goes_on_with_the_same_covariance() -> None:
    settings, generator = BandedNoise(3), np.random.default_rng(0)
    history = settings.start(2)
    for _ in range(4):
        _, history = settings.next(generator, 1.0, history)
    kept = np.array(history.tolist())
    state = generator.bit_generator.state
    straight, _ = settings.next(generator, 1.0, history)
    generator.bit_generator.state = state
    assert np.array_equal(settings.next(generator, 1.0, kept)[0], straight)


def patterns(rounds: int, separation: int) -> list[tuple[int, ...]]:
    """Return all sets of rounds with neighbours at least ``separation`` apart."""
    return [
        chosen
        for k in range(1, rounds + 1)
        for chosen in itertools.combinations(range(rounds), k)
        if all(b - a >= separation for a, b in itertools.pairwise(chosen))
    ]


@pytest.mark.parametrize(("bands", "rounds"), [(1, 7), (2, 9), (3, 10), (4, 12)])
def test_no_separated_pattern_of_participation_exceeds_the_sensitivity(bands: int, rounds: int) -> None:
    generator, matrix, unit = np.random.default_rng(0), strategy(bands, rounds), column_norm(bands, rounds)
    for chosen in patterns(rounds, bands):
        for _ in range(5):
            contributions = generator.standard_normal((len(chosen), 2))
            contributions /= np.linalg.norm(contributions, axis=1, keepdims=True)
            assert np.linalg.norm(matrix[:, chosen] @ contributions) / unit <= sensitivity(len(chosen)) + 1e-12
    assert max(map(len, patterns(rounds, bands))) == most_participations(rounds, bands)


def test_the_sensitivity_is_reached_by_a_client_whose_columns_are_not_cut_off() -> None:
    columns = strategy(3, 9)[:, [0, 3, 6]]
    assert np.linalg.norm(columns @ np.ones(3)) / column_norm(3, 9) == pytest.approx(sensitivity(3))


def test_a_client_that_comes_back_too_early_exceeds_it() -> None:
    columns = strategy(3, 9)[:, [0, 2]]
    assert np.linalg.norm(columns @ np.ones(2)) / column_norm(3, 9) > sensitivity(2) * 1.05


@given(bands=st.integers(1, 40), rounds=st.integers(1, 40))
def test_the_first_column_is_the_longest(bands: int, rounds: int) -> None:
    lengths = np.linalg.norm(strategy(bands, rounds), axis=0)
    assert column_norm(bands, rounds) == pytest.approx(lengths.max(), rel=1e-12)
    assert BandedNoise(bands).std(2.0, 0.5, rounds) == pytest.approx(lengths.max(), rel=1e-12)


def prefix_error(bands: int, rounds: int) -> float:
    """Return the root mean square noise of the running sums for z = C = 1, in closed form."""
    sums = np.tril(np.ones((rounds, rounds))) @ np.linalg.inv(strategy(bands, rounds))
    return float(np.linalg.norm(sums) * column_norm(bands, rounds) / math.sqrt(rounds))


def test_running_sums_carry_less_noise_than_independent_noise_of_equal_guarantee() -> None:
    # 50 rounds, each client in 5 of them, 10 apart: both have sensitivity sqrt(5).
    ratio = prefix_error(10, 50) / prefix_error(1, 50)
    assert ratio == pytest.approx(0.4698, abs=1e-4)
    measured = np.cumsum(run(10, 50, 4000, column_norm(10, 50)), axis=0)
    assert np.sqrt(np.mean(measured**2)) == pytest.approx(prefix_error(10, 50), rel=0.03)


def test_more_bands_never_hurt_the_running_sums_of_a_long_training() -> None:
    errors = [prefix_error(bands, 100) for bands in (1, 2, 5, 10, 20, 50)]
    assert errors == sorted(errors, reverse=True)
