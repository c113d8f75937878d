"""Bounds from error rates: published values, limits that hold together, and a Gaussian mechanism as the truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fedalign.privacy.audit_bound import CanaryScores
from fedalign.privacy.confidence import clopper_pearson_upper
from fedalign.privacy.gaussian_divergence import gaussian_epsilon
from fedalign.privacy.roc_audit import ErrorRates, GdpBound, RocBound, error_rates, gdp_mu, roc_epsilon

SHARES = (0.0, 0.01, 0.05, 0.2, 0.5)


def scores_of(mu: float, count: int, generator: np.random.Generator) -> CanaryScores:
    """Return the scores of a mechanism with unit noise and sensitivity ``mu``, ``count`` canaries a side."""
    return CanaryScores(generator.normal(mu, 1, count), generator.normal(0, 1, count), fair_coins=False)


@pytest.mark.parametrize(("count", "expected"), [(100, 3.28), (500, 4.91), (1000, 5.60), (5000, 7.21)])
def test_a_perfect_attack_gives_the_known_bounds(count: int, expected: float) -> None:
    limit = clopper_pearson_upper([0], count, 0.025)
    assert roc_epsilon(ErrorRates(limit, limit), 1e-5) == pytest.approx([expected], abs=0.005)


def test_a_perfect_attack_pays_for_its_thresholds_only() -> None:
    scores = CanaryScores(np.arange(100.0, 200), np.arange(100.0), fair_coins=False)
    epsilon, _ = RocBound((0.0,)).epsilon(scores, 1e-5, 0.1, np.random.default_rng(0))
    # Two thresholds, one a side: 0.1 of error probability for both is 0.025 a limit.
    assert epsilon == pytest.approx(3.28, abs=0.005)


def test_true_error_rates_give_no_more_than_the_true_epsilon_and_mu() -> None:
    mu, delta = 1.3, 1e-5
    thresholds = np.linspace(-4, 6, 200)
    rates = ErrorRates(stats.norm.sf(thresholds), stats.norm.cdf(thresholds - mu))
    assert gdp_mu(rates) == pytest.approx(np.full(200, mu), rel=1e-9)
    assert roc_epsilon(rates, delta).max() <= gaussian_epsilon(0, 1, mu, 1, delta)


def test_the_limits_hold_all_at_once() -> None:
    generator = np.random.default_rng(1)
    mu, failed = 1.0, 0
    for _ in range(300):
        rates = error_rates(scores_of(mu, 60, generator), SHARES, 0.1)
        # No test on these scores is better than the optimal one, so limits of true rates lie on or above its curve.
        failed += bool((gdp_mu(rates) > mu).any())
    assert failed <= 0.1 * 300


def test_the_limit_beyond_an_order_statistic_is_as_sure_as_it_says() -> None:
    generator = np.random.default_rng(2)
    misses = 0
    for _ in range(2000):
        held_out = generator.random(40)
        rates = error_rates(CanaryScores(np.ones(40), held_out, fair_coins=False), (0.1,), 0.4)
        threshold = np.sort(held_out)[-5]
        misses += (1 - threshold) > rates.false_positive[0]
    # Four limits share 0.4, and this one is exact for continuous scores.
    assert misses / 2000 == pytest.approx(0.1, abs=0.02)


def test_both_sides_are_mirror_images() -> None:
    scores = scores_of(1.0, 50, np.random.default_rng(3))
    mirrored = CanaryScores(-scores.held_out, -scores.included, fair_coins=False)
    there, back = error_rates(scores, SHARES, 0.05), error_rates(mirrored, SHARES, 0.05)
    assert sorted(there.false_positive) == sorted(back.false_negative)
    assert sorted(there.false_negative) == sorted(back.false_positive)


def test_equal_scores_separate_nothing() -> None:
    scores = CanaryScores(np.zeros(1000), np.zeros(1000), fair_coins=False)
    for bound in (RocBound(SHARES), GdpBound(SHARES)):
        assert bound.measure(scores, 1e-5, 0.05, np.random.default_rng(0)).epsilon == 0


@pytest.mark.parametrize("mu", [0.0, 0.5, 2.0])
def test_bounds_stay_below_the_true_epsilon(mu: float) -> None:
    generator = np.random.default_rng(4)
    truth = float(gaussian_epsilon(0, 1, mu, 1, 1e-5))
    found = np.array(
        [
            [b.epsilon(s, 1e-5, 0.05, generator)[0] for b in (RocBound(SHARES), GdpBound(SHARES))]
            for s in (scores_of(mu, 200, generator) for _ in range(100))
        ]
    )
    assert ((found > truth).mean(0) <= 0.05).all()
    if mu == 2.0:
        # Knowing that the noise is Gaussian helps.
        assert found[:, 1].mean() > 0.5 * truth > found[:, 0].mean() > 0.1 * truth
