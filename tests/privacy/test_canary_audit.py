"""The canary audit: directions, scores, the Gaussian estimate, and a bound that finds no leak where there is none."""

from __future__ import annotations

import dp_accounting
import numpy as np
import pytest
from scipy import stats

from fedalign.privacy.audit_bound import CanaryScores
from fedalign.privacy.canary_audit import (
    CanaryBound,
    Normal,
    canary_bound,
    canary_directions,
    canary_estimate,
    cosine_scores,
    fit_normal,
    inner_products,
    sphere_null,
)
from fedalign.privacy.gaussian_divergence import gaussian_epsilon
from tests.cases import mostly_slow


def test_directions_have_length_one_and_no_preference() -> None:
    drawn = canary_directions(4000, 12, np.random.default_rng(0))
    assert np.linalg.norm(drawn, axis=1) == pytest.approx(np.ones(4000))
    assert np.abs(drawn.mean(0)).max() < 5 * (12 * 4000) ** -0.5
    assert np.cov(drawn, rowvar=False) == pytest.approx(np.eye(12) / 12, abs=0.01)


def test_cosines_of_unused_directions_follow_the_null() -> None:
    directions = canary_directions(2000, 500, np.random.default_rng(1))
    null = sphere_null(500)
    scores = cosine_scores(directions, np.linspace(-1, 3, 500))
    assert stats.kstest(scores, "norm", args=(null.mean, null.std)).pvalue > 0.01


def test_scores_are_cosines_and_inner_products() -> None:
    directions = np.array([[1.0, 0.0], [0.6, 0.8]])
    released = np.array([3.0, 4.0])
    assert inner_products(directions, released) == pytest.approx([3.0, 5.0])
    assert cosine_scores(directions, released) == pytest.approx([0.6, 1.0])
    assert cosine_scores(directions, np.zeros(2)).tolist() == [0.0, 0.0]


def test_a_noised_sum_of_canaries_is_seen_as_the_gaussian_mechanism() -> None:
    generator = np.random.default_rng(2)
    dim, count, sigma = 20_000, 60, 0.8
    directions = canary_directions(2 * count, dim, generator)
    released = directions[:count].sum(0) + sigma * generator.standard_normal(dim)
    scores = inner_products(directions, released)
    included, null = fit_normal(scores[:count]), fit_normal(scores[count:])
    # One canary moves its own score by its length, in noise of deviation sigma.
    assert (included.mean - null.mean) / null.std == pytest.approx(1 / sigma, abs=0.5)
    # Other canaries, almost orthogonal, add count / dim to the variance.
    assert null.std == pytest.approx(np.hypot(sigma, (count / dim) ** 0.5), rel=0.25)


def test_the_estimate_is_the_exact_epsilon_between_the_fits() -> None:
    expected = dp_accounting.get_epsilon_gaussian(0.5, 1e-5)
    assert canary_estimate(Normal(2.0, 1.0), Normal(0.0, 1.0), 1e-5) == pytest.approx(expected)
    assert canary_estimate(Normal(0.0, 0.0), Normal(0.0, 0.0), 1e-5) == 0
    assert canary_estimate(Normal(1.0, 0.0), Normal(0.0, 0.1), 1e-5) == np.inf


def test_a_mechanism_that_ignores_its_data_has_a_bound_of_zero() -> None:
    generator = np.random.default_rng(3)
    found, estimates = [], []
    for _ in range(200):
        included, held_out = generator.standard_normal((2, 500))
        found.append(canary_bound(included, held_out, 1e-5, 0.95, 200, generator))
        estimates.append(canary_estimate(fit_normal(included), fit_normal(held_out), 1e-5))
    # Three binomial deviations of 200 runs around 5 % of them.
    assert np.mean(np.array(found) > 0) <= 0.05 + 3 * (0.05 * 0.95 / 200) ** 0.5
    # What must not be called a bound: the estimates are biased upwards.
    assert np.mean(estimates) > 0.2


@pytest.mark.parametrize(("mu", "ratio"), mostly_slow([(0.5, 1.0), (2.0, 1.0), (2.0, 1.3)], [(2.0, 1.3)]))
def test_the_bound_stays_below_the_true_epsilon_and_comes_near(mu: float, ratio: float) -> None:
    generator = np.random.default_rng(4)
    truth = float(gaussian_epsilon(0, 1, mu, ratio, 1e-5))
    found = np.array(
        [
            canary_bound(generator.normal(mu, ratio, 300), generator.normal(0, 1, 300), 1e-5, 0.95, 200, generator)
            for _ in range(100)
        ]
    )
    assert (found > truth).mean() <= 0.05 + 2 * (0.05 * 0.95 / 100) ** 0.5
    assert found.mean() > 0.5 * truth


def test_a_known_null_replaces_the_held_out_canaries() -> None:
    generator = np.random.default_rng(5)
    included = generator.normal(1.0, 1.0, 500)
    known = canary_bound(included, Normal(0.0, 1.0), 1e-5, 0.95, 200, generator)
    sampled = canary_bound(included, generator.standard_normal(500), 1e-5, 0.95, 200, generator)
    assert 0 < sampled < known < gaussian_epsilon(0, 1, 1, 1, 1e-5)


def test_the_bound_does_not_depend_on_the_unit_of_the_scores() -> None:
    included, held_out = np.random.default_rng(6).normal([[1.0], [0.0]], 1.0, (2, 200))
    bounds = [
        canary_bound(s * included + 5, s * held_out + 5, 1e-5, 0.95, 200, np.random.default_rng(0)) for s in (1.0, 1e-4)
    ]
    assert bounds[0] > 0
    assert bounds[1] == pytest.approx(bounds[0], rel=1e-6)


def test_scores_without_a_spread_give_no_bound_and_the_fit_has_no_ceiling() -> None:
    scores = CanaryScores(np.ones(50), np.zeros(50), fair_coins=True)
    bound = CanaryBound(200).measure(scores, 1e-5, 0.05, np.random.default_rng(0))
    assert (bound.epsilon, bound.ceiling) == (0.0, np.inf)
