"""Means and intervals against scipy and closed form."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedalign.report.statistics import mean_interval, paired_difference

VALUES = st.lists(st.floats(-100, 100), min_size=2, max_size=12)


@given(VALUES)
def test_the_interval_is_scipys(values: list[float]) -> None:
    estimate = mean_interval(values)
    assert estimate.n == len(values) and estimate.half_width is not None
    spread = float(stats.sem(values))
    if spread == 0:
        assert estimate.half_width == 0
        return
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=spread)
    assert estimate.mean - estimate.half_width == pytest.approx(low, abs=1e-9)
    assert estimate.mean + estimate.half_width == pytest.approx(high, abs=1e-9)


def test_closed_form_for_two_values() -> None:
    # t(1) is Cauchy: its 97.5 % quantile is tan(0.475 pi); s / sqrt(2) of {0, 2} is 1.
    estimate = mean_interval([0.0, 2.0])
    assert estimate.mean == 1.0
    assert estimate.half_width == pytest.approx(math.tan(0.475 * math.pi))


def test_one_value_has_no_interval_and_none_no_mean() -> None:
    assert mean_interval([0.5]).half_width is None
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])


def test_about_95_of_100_intervals_hold_the_truth() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        estimate = mean_interval(list(rng.normal(1.0, 2.0, size=5)))
        assert estimate.half_width is not None
        held += abs(estimate.mean - 1.0) <= estimate.half_width
    assert 0.935 < held / 2000 < 0.965


@given(st.dictionaries(st.integers(0, 9), st.floats(-5, 5)), st.dictionaries(st.integers(0, 9), st.floats(-5, 5)))
def test_paired_difference_uses_shared_seeds_only(a: dict[int, float], b: dict[int, float]) -> None:
    shared = sorted(set(a) & set(b))
    difference = paired_difference(a, b)
    if not shared:
        assert difference is None
        return
    expected = np.array([a[seed] - b[seed] for seed in shared])
    assert difference is not None and difference.n == len(shared)
    assert difference.mean == pytest.approx(expected.mean(), abs=1e-9)
    if len(shared) > 1 and expected.std() > 1e-6:
        test = stats.ttest_rel([a[seed] for seed in shared], [b[seed] for seed in shared])
        interval = test.confidence_interval(0.95)
        assert difference.half_width == pytest.approx((interval.high - interval.low) / 2, rel=1e-6)


def test_pairing_takes_out_what_a_seed_does_to_both() -> None:
    baseline = {seed: 10.0 * seed for seed in range(5)}
    difference = paired_difference({seed: value + 1.0 for seed, value in baseline.items()}, baseline)
    assert difference is not None and difference.mean == 1.0 and difference.half_width == 0.0
