"""Distributed noise: the decoded sum, its noise at any cohort, its sensitivity and its room."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dp_accounting.rdp import rdp_privacy_accountant as rdp
from hypothesis import given
from hypothesis import strategies as st

from fedalign.errors import UserError
from fedalign.privacy.clipping import clip
from fedalign.privacy.distributed_noise import SkellamCode
from fedalign.privacy.noise import SystemNoise
from fedalign.privacy.rotation import random_signs, rotate_back
from fedalign.privacy.rounding import Rounding
from fedalign.privacy.skellam import skellam_rdp
from fedalign.rng import Streams

ROUNDING = Rounding(inflation=0.01, failure=math.exp(-0.5))


def code(size: int = 1000, noise_multiplier: float = 0.0, bound: float = 1.0, smallest_cohort: int = 4) -> SkellamCode:
    return SkellamCode(size, bound, noise_multiplier, smallest_cohort, ROUNDING)


def signs_of(settings: SkellamCode, round_: int = 1) -> np.ndarray:
    return random_signs(settings.size, Streams(0).at(round=round_).numpy("rotation"))


def vectors_of(clients: int, size: int, norm: float = 3.0) -> np.ndarray:
    vectors = np.random.default_rng(5).standard_normal((clients, size))
    return norm * vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@given(size=st.integers(1, 300), clients=st.integers(1, 6), bound=st.floats(1e-3, 1e3), norm=st.floats(0, 10))
def test_without_noise_the_sum_is_that_of_the_clipped_vectors_up_to_rounding(
    size: int, clients: int, bound: float, norm: float
) -> None:
    settings, vectors = code(size, bound=bound), vectors_of(clients, size, norm)
    signs, generator = signs_of(settings), np.random.default_rng(0)
    total = np.sum([settings.encode(vector, signs, generator) for vector in vectors], axis=0)
    error = settings.decode(total, signs) - np.sum([clip(vector, bound)[0] for vector in vectors], axis=0)
    grid = bound / settings.steps
    assert np.linalg.norm(error) <= clients * math.sqrt(settings.padded) * grid


@pytest.mark.parametrize("clients", [4, 12])
def test_the_noise_in_the_sum_is_calibrated_to_the_smallest_cohort_and_grows_with_survivors(clients: int) -> None:
    settings, vectors = code(100_000, noise_multiplier=1.3, bound=0.5), vectors_of(clients, 100_000)
    signs = signs_of(settings)
    parts = [settings.encode(vector, signs, SystemNoise().generator(Streams(0), "share")) for vector in vectors]
    error = settings.decode(np.sum(parts, axis=0), signs) - np.sum([clip(v, 0.5)[0] for v in vectors], axis=0)
    assert error.std() == pytest.approx(settings.std(clients), rel=0.02)
    # Of the smallest cohort, of four, any three bring what is accounted for: one of them may take its own share off.
    assert settings.std(3) == pytest.approx(1.3 * 0.5 * 1.01, rel=1e-9)
    assert settings.std(clients) == pytest.approx(settings.std(3) * math.sqrt(clients / 3))


def adversarial(size: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    spike = np.zeros(size)
    spike[0] = 1e30
    return [np.zeros(size), spike, np.ones(size), 1e300 * generator.standard_normal(size), 1e-300 * np.ones(size)]


@pytest.mark.parametrize("size", [1, 2, 7, 64, 1000])
def test_no_vector_moves_the_sum_by_more_than_the_sensitivities(size: int) -> None:
    settings = code(size)
    for vector in [*adversarial(size), *vectors_of(10, size)]:
        for seed in range(5):
            integers = settings.encode(vector, signs_of(settings, seed), np.random.default_rng(seed))
            assert np.linalg.norm(integers) <= settings.l2
            assert np.abs(integers).sum() <= settings.l1


def test_a_vector_halfway_between_grid_points_everywhere_stays_within_the_sensitivity() -> None:
    settings = code(1024)
    signs, each = signs_of(settings), settings.steps / math.sqrt(1024)
    assert 0.4 < each % 1 < 0.6
    vector = rotate_back(np.full(1024, each), signs, 1024) / settings.steps  # as long as the bound
    lengths = [np.linalg.norm(settings.encode(vector, signs, np.random.default_rng(seed))) for seed in range(100)]
    assert settings.steps < max(lengths) <= settings.l2


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_invalid_vectors_are_refused(value: float) -> None:
    settings = code(2)
    with pytest.raises(ValueError, match="NaN or infinite"):
        settings.encode(np.array([value, 0.0]), signs_of(settings), np.random.default_rng(0))
    with pytest.raises(ValueError, match="3 coordinates where 2"):
        settings.encode(np.zeros(3), signs_of(settings), np.random.default_rng(0))


@pytest.mark.parametrize(("size", "noise_multiplier"), [(5, 1.0), (1000, 0.5), (10**6, 2.0)])
def test_a_noise_multiplier_buys_what_it_buys_with_gaussian_noise(size: int, noise_multiplier: float) -> None:
    settings, orders = code(size, noise_multiplier), rdp.DEFAULT_RDP_ORDERS
    whole = [order for order in orders if order == int(order)]
    cost = 50 * skellam_rdp(whole, settings.l1, settings.l2, settings.variance)
    gaussian = [50 * order / (2 * noise_multiplier**2) for order in whole]
    epsilon, reference = (rdp.compute_epsilon(whole, values, 1e-6)[0] for values in (cost, gaussian))
    assert reference <= epsilon <= 1.01 * reference


@pytest.mark.parametrize(("size", "clients"), [(1, 5), (50, 30), (20_000, 30)])
def test_sums_stay_within_the_room_that_is_asked_for_and_need_most_of_it(size: int, clients: int) -> None:
    settings = code(size, noise_multiplier=0.8)
    signs, generator = signs_of(settings), np.random.default_rng(0)
    same = np.broadcast_to(vectors_of(1, size), (clients, size))  # all push the same way
    total = np.sum([settings.encode(vector, signs, generator) for vector in same], axis=0)
    assert np.abs(total).max() <= settings.largest(clients) < 2 ** (settings.bits(clients) - 1)
    assert np.abs(total).max() > settings.largest(clients) / 10


def test_a_sum_that_would_wrap_around_is_refused_with_the_bits_that_it_needs() -> None:
    settings = code(10**6, noise_multiplier=1.0, smallest_cohort=100)
    needed = settings.bits(1000)
    assert 16 < needed < 24
    settings.check(needed, 1000)
    with pytest.raises(UserError, match=f"need {needed} bits, and the secure sum has {needed - 1}"):
        settings.check(needed - 1, 1000)
