"""Skellam noise and its Rényi bound, against the exact divergence and the Gaussian mechanism."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ive, logsumexp
from scipy.stats import chisquare
from scipy.stats import skellam as oracle

from fedalign.privacy.events import Event, Relation
from fedalign.privacy.skellam import SkellamEvent, integer_l1, skellam, skellam_quantile, skellam_rdp


def exact(order: float, shift: int, variance: float) -> float:
    """Return the Rényi divergence of a shifted Skellam from the unshifted one, summed over the integers."""
    reach = int(shift * order + 25 * math.sqrt(variance) + 10)
    value = np.arange(-reach, reach + 1)
    with np.errstate(divide="ignore"):
        shifted, centred = (np.log(ive(np.abs(value - s).astype(float), variance)) for s in (shift, 0))
    seen = np.isfinite(shifted) & np.isfinite(centred)
    return float(logsumexp((order * shifted + (1 - order) * centred)[seen])) / (order - 1)


@pytest.mark.parametrize("variance", [2.0, 10.0, 100.0, 1000.0])
@pytest.mark.parametrize("shift", [1, 2, 5])
@pytest.mark.parametrize("order", [2, 3, 8, 16])
def test_the_bound_is_above_the_exact_divergence(order: int, shift: int, variance: float) -> None:
    assert skellam_rdp(order, shift, shift, variance)[0] >= exact(order, shift, variance)


@pytest.mark.parametrize("shift", [1, 3])
@pytest.mark.parametrize("order", [2, 8, 32])
def test_the_bound_is_tight_and_gaussian_for_much_noise(order: int, shift: int) -> None:
    bound = skellam_rdp(order, shift, shift, 1e4)[0]
    assert bound == pytest.approx(exact(order, shift, 1e4), rel=0.01)
    assert bound == pytest.approx(order * shift**2 / 2e4, rel=0.01)


def test_the_bound_covers_vectors() -> None:
    shifts, variance, order = [3, 1, 0, 2], 40.0, 4
    together = sum(exact(order, shift, variance) for shift in shifts)
    bound = skellam_rdp(order, sum(shifts), math.hypot(*shifts), variance)[0]
    assert together <= bound <= 1.25 * together


@pytest.mark.parametrize(
    ("order", "l1", "l2", "variance", "expected"),
    [(2, 1.0, 1.0, 10.0, 0.1 + 9 / 400), (2, 1.0, 1.0, 1.0, 1 + 3 / 2), (3, 4.0, 2.0, 10.0, 0.6 + 44 / 400)],
)
def test_values_worked_out_by_hand(order: int, l1: float, l2: float, variance: float, expected: float) -> None:
    assert skellam_rdp(order, l1, l2, variance)[0] == pytest.approx(expected, rel=1e-12)


def test_an_order_between_two_whole_ones_gets_the_bound_of_the_next() -> None:
    between, whole = skellam_rdp([1.1, 2.5], 1, 1, 30.0), skellam_rdp([2, 3], 1, 1, 30.0)
    assert between.tolist() == whole.tolist()
    assert all(between >= [exact(1.1, 1, 30.0), exact(2.5, 1, 30.0)])


@given(variance=st.floats(1e-3, 1e9), order=st.integers(2, 256), l2=st.floats(1e-3, 1e3))
def test_the_bound_falls_with_noise_and_is_never_below_the_gaussian(variance: float, order: int, l2: float) -> None:
    bound = skellam_rdp(order, l2**2, l2, variance)[0]
    assert bound >= order * l2**2 / (2 * variance)
    assert skellam_rdp(order, l2**2, l2, 2 * variance)[0] < bound


def test_without_noise_there_is_no_privacy() -> None:
    assert skellam_rdp([2, 3], 1, 1, 0.0).tolist() == [math.inf, math.inf]


def test_the_event_carries_the_bound_and_survives_json() -> None:
    event, orders = SkellamEvent(4.0, 2.0, 10.0), np.array([2.0, 3.0])
    assert event.rdp(orders).tolist() == skellam_rdp(orders, 4.0, 2.0, 10.0).tolist()
    assert Event.from_json(event.to_json()) == event
    assert event.under(Relation.REPLACE_ONE) == SkellamEvent(8.0, 4.0, 10.0)
    assert (event.gaussian, event.pld_event) == (None, None)


@pytest.mark.parametrize("fields", [(-1.0, 1.0, 1.0), (1.0, math.nan, 1.0), (1.0, 1.0, math.inf)])
def test_an_event_with_impossible_numbers_is_refused(fields: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="must be finite and at least 0"):
        SkellamEvent(*fields)


@pytest.mark.parametrize("variance", [0.3, 4.0])
def test_draws_follow_the_distribution(variance: float) -> None:
    draws = skellam(100_000, variance, np.random.default_rng(0))
    assert draws.dtype == np.int64
    values = np.arange(-3, 4)
    inner = oracle.pmf(values, variance / 2, variance / 2) * len(draws)
    counts = [(draws == value).sum() for value in values]
    expected = [*inner, len(draws) - inner.sum()]
    assert chisquare([*counts, len(draws) - sum(counts)], expected).pvalue > 1e-4


@pytest.mark.parametrize("variance", [0.01, 3.0, 1e4, 1e10])
def test_the_standard_deviation_is_the_one_asked_for(variance: float) -> None:
    draws = skellam(400_000, variance, np.random.default_rng(1))
    assert draws.std() == pytest.approx(math.sqrt(variance), rel=0.02)


def test_shares_of_clients_add_up_and_are_uncorrelated() -> None:
    shares = np.stack([skellam(200_000, 2.0, np.random.default_rng(client)) for client in range(5)])
    assert shares.sum(0).std() == pytest.approx(math.sqrt(10.0), rel=0.02)
    assert np.abs(np.corrcoef(shares) - np.eye(5)).max() < 6 / math.sqrt(200_000)


@pytest.mark.parametrize("variance", [-1.0, math.nan, math.inf])
def test_a_variance_must_be_finite_and_not_negative(variance: float) -> None:
    with pytest.raises(ValueError, match="variance of Skellam noise"):
        skellam(2, variance, np.random.default_rng(0))


@pytest.mark.parametrize("variance", [0.01, 1.0, 100.0, 1e6])
@pytest.mark.parametrize("probability", [1e-2, 1e-6, 1e-12])
def test_the_quantile_covers_the_tail_without_waste(variance: float, probability: float) -> None:
    quantile = skellam_quantile(variance, probability)
    beyond = 2 * oracle.sf(math.floor(quantile), variance / 2, variance / 2)
    assert beyond <= probability
    # The exact tail is at most a polynomial factor lighter.
    assert 2 * oracle.sf(math.floor(0.7 * quantile) - 1, variance / 2, variance / 2) > probability


def test_the_quantile_of_much_noise_is_the_gaussians() -> None:
    assert skellam_quantile(1e10, 1e-9) == pytest.approx(math.sqrt(2e10 * math.log(2e9)), rel=1e-3)
    assert skellam_quantile(0.0, 1e-9) == 0.0


@given(st.lists(st.integers(-50, 50), min_size=1, max_size=20))
def test_the_l1_norm_of_integers_follows_from_their_l2_norm(values: list[int]) -> None:
    assert sum(map(abs, values)) <= integer_l1(math.hypot(*values), len(values)) * (1 + 1e-12)
