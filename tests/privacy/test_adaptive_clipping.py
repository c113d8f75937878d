"""Adaptive clipping: the sign of the step, the quantile it settles at, and what the count costs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm as normal

from fedalign.errors import UserError
from fedalign.privacy.adaptive_clipping import AdaptiveClip, norm_bit, update_noise_multiplier

SETTINGS = AdaptiveClip(quantile=0.5, learning_rate=0.2, count_noise=0.05)


def bounds(
    settings: AdaptiveClip, norms: Sequence[float], rounds: int, noise: float = 0.0, start: float = 1.0
) -> list[float]:
    """Run the loop with the same norms in every round."""
    generator = np.random.default_rng(0)
    path = [start]
    for _ in range(rounds):
        bits = sum(norm_bit(norm, path[-1]) for norm in norms)
        path.append(settings.next_bound(path[-1], bits + noise * generator.standard_normal(), len(norms)))
    return path


def test_the_bound_grows_while_every_update_is_clipped() -> None:
    path = bounds(SETTINGS, [5.0] * 10, 11)
    assert path[1] == pytest.approx(math.exp(0.1))
    assert path == sorted(path)
    assert path[-1] == pytest.approx(math.exp(1.1))


def test_the_bound_shrinks_while_no_update_is_clipped() -> None:
    path = bounds(SETTINGS, [0.2] * 10, 11)
    assert path[1] == pytest.approx(math.exp(-0.1))
    assert path == sorted(path, reverse=True)


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("start", [0.01, 10.0])
def test_the_bound_settles_at_the_quantile_of_the_norms(quantile: float, start: float) -> None:
    norms = np.random.default_rng(1).lognormal(0.0, 0.5, 1000)
    settings = AdaptiveClip(quantile, 0.2, 0.05)
    settled = bounds(settings, norms.tolist(), 300, noise=settings.count_std(len(norms)), start=start)[200:]
    assert (norms <= np.exp(np.mean(np.log(settled)))).mean() == pytest.approx(quantile, abs=0.03)


def test_the_denominator_is_the_expected_cohort_so_nobody_who_came_is_half_within() -> None:
    assert SETTINGS.next_bound(2.0, 0.0, 10) == 2.0
    two_of_two = SETTINGS.next_bound(1.0, 2 * norm_bit(0.1, 1.0), 10)
    assert two_of_two == pytest.approx(math.exp(-0.2 * 0.1))


@given(bit_sum=st.floats(-1e6, 1e6), bound=st.floats(1e-3, 1e3))
def test_noise_moves_the_bound_one_full_step_at_most(bit_sum: float, bound: float) -> None:
    ratio = SETTINGS.next_bound(bound, bit_sum, 20) / bound
    assert math.exp(-0.1) * (1 - 1e-12) <= ratio <= math.exp(0.1) * (1 + 1e-12)


def test_a_norm_at_the_bound_is_within_it() -> None:
    assert [norm_bit(norm, 1.0) for norm in (0.0, 1.0, 1.0001, math.inf)] == [0.5, 0.5, -0.5, -0.5]


def delta(multiplier: float, epsilon: float) -> float:
    """Exact delta of one Gaussian release (Balle and Wang 2018)."""
    mu = 1 / multiplier
    return float(normal.cdf(mu / 2 - epsilon / mu) - np.exp(epsilon) * normal.cdf(-mu / 2 - epsilon / mu))


@given(z=st.floats(0.3, 3.0), ratio=st.floats(1.05, 20.0))
def test_updates_and_count_together_cost_what_one_release_of_the_multiplier_costs(z: float, ratio: float) -> None:
    count_std = ratio * z / 2
    z_update = update_noise_multiplier(z, count_std)
    assert z_update > z
    # Both releases as one vector: update of length 1 in units of z_update, bit of length 1/2 in units of count_std.
    together = math.hypot(1 / z_update, 0.5 / count_std)
    assert delta(1 / together, 1.0) == pytest.approx(delta(z, 1.0), rel=1e-6)


def test_the_papers_count_noise_is_nearly_free() -> None:
    z = update_noise_multiplier(1.0, SETTINGS.count_std(100))
    assert z == pytest.approx(1.00504, abs=1e-5)


@pytest.mark.parametrize("count_std", [0.0, 0.3, 0.5])
def test_too_little_noise_on_the_count_is_refused(count_std: float) -> None:
    with pytest.raises(UserError, match=r"raise it until that is above 0\.5"):
        update_noise_multiplier(1.0, count_std)


def test_without_noise_there_is_nothing_to_divide() -> None:
    assert update_noise_multiplier(0.0, 0.0) == 0.0
