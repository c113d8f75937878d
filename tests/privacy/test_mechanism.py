"""Mechanisms: what they release, what it costs by how cohorts come about, and whom they refuse."""

from __future__ import annotations

import numpy as np
import pytest

from fedalign.errors import UserError
from fedalign.privacy.events import FixedSizeGaussianEvent, GaussianEvent, PoissonGaussianEvent
from fedalign.privacy.matrix_noise import coefficients, column_norm
from fedalign.privacy.mechanism import Banded, Gaussian, Scale
from fedalign.privacy.scheme import Sampling, Scheme

POISSON = Sampling(Scheme.POISSON, 100, 10.0)
FIXED = Sampling(Scheme.FIXED_SIZE, 100, 10.0)
EVERYONE = Sampling(Scheme.EVERYONE, 100, 100.0)
CYCLIC = Sampling(Scheme.CYCLIC, 100, 25.0, 4)
KNOWN = Sampling(Scheme.KNOWN, 100, 10.0)
NOTHING = np.zeros((0, 1))


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("sampling", "event"),
    [
        (POISSON, PoissonGaussianEvent(0.1, 1.3)),
        (FIXED, FixedSizeGaussianEvent(100, 10, 1.3)),
        (EVERYONE, GaussianEvent(1.3)),
        (CYCLIC, GaussianEvent(1.3)),
        (KNOWN, GaussianEvent(1.3)),
    ],
)
def test_a_gaussian_release_costs_what_its_cohorts_make_of_it(sampling: Sampling, event: object) -> None:
    assert Gaussian().event(1.3, sampling, 5) == event
    assert Gaussian().amplified(sampling) == (sampling in (POISSON, FIXED))


def test_the_rate_of_a_sampling_is_its_expected_share() -> None:
    assert [s.rate for s in (POISSON, EVERYONE, CYCLIC)] == [0.1, 1.0, 0.25]


def test_gaussian_noise_has_the_scale_of_bound_and_multiplier() -> None:
    total = np.full(200_000, 7.0)
    released, history = Gaussian().release(total, Scale(0.5, 3.0), generator(), NOTHING)
    noise = released - total
    assert noise.std() == pytest.approx(1.5, rel=0.01)
    assert abs(noise.mean()) < 4.5 * 1.5 / np.sqrt(len(noise))
    assert history is NOTHING


def test_no_noise_releases_the_sum() -> None:
    total = np.array([1.0, 2.0])
    for mechanism in (Gaussian(), Banded(3)):
        released, _ = mechanism.release(total, Scale(1.0, 0.0), generator(), np.zeros((0, 2)))
        np.testing.assert_allclose(released, total)


@pytest.mark.parametrize("bands", [1, 2, 4])
def test_banded_noise_is_the_inverse_of_a_banded_matrix_times_independent_noise(bands: int) -> None:
    size, rounds, scale = 20_000, 7, Scale(0.5, 2.0)
    mechanism, history, noises = Banded(bands), np.zeros((0, size)), []
    for number in range(rounds):
        released, history = mechanism.release(np.zeros(size), scale, generator(number), history)
        noises.append(released)
    matrix = sum(np.diag([c] * (rounds - shift), -shift) for shift, c in enumerate(coefficients(bands)))
    independent = matrix @ np.array(noises)
    std = 2.0 * 0.5 * column_norm(bands, bands)
    np.testing.assert_allclose(np.cov(independent), std**2 * np.eye(rounds), atol=0.05 * std**2)
    assert history.shape == (bands - 1, size)


def test_bands_lower_the_noise_of_a_sum_over_rounds() -> None:
    size, spread = 2000, {}
    for bands in (1, 4):
        history, summed = np.zeros((0, size)), np.zeros(size)
        for number in range(16):
            noise, history = Banded(bands).release(np.zeros(size), Scale(1.0, 1.0), generator(number), history)
            summed += noise
        spread[bands] = summed.std()
    assert spread[4] < 0.8 * spread[1]


@pytest.mark.parametrize("sampling", [POISSON, FIXED, EVERYONE])
def test_banded_noise_refuses_clients_that_may_come_back_early(sampling: Sampling) -> None:
    with pytest.raises(UserError, match=r"privacy\.mechanism\.bands=4: .* they are 1; set federation/sampler=cyclic"):
        Banded(4).check(sampling)
    Banded(1).check(sampling)
    Gaussian().check(sampling)


def test_banded_noise_takes_groups_that_are_far_enough_apart() -> None:
    Banded(4).check(CYCLIC)
    with pytest.raises(UserError, match="at least 5 groups"):
        Banded(5).check(CYCLIC)


def test_a_round_of_banded_noise_costs_a_client_one_gaussian_release() -> None:
    assert Banded(4).event(1.3, CYCLIC, 5) == GaussianEvent(1.3)
    assert not Banded(4).amplified(CYCLIC)


def test_noise_that_float64_loses_is_refused() -> None:
    for mechanism in (Gaussian(), Banded(2)):
        with pytest.raises(UserError, match="lost in float64"):
            mechanism.release(np.array([1e12]), Scale(1e-12, 1.0), generator(), np.zeros((0, 1)))
