"""Epsilon of compositions, against dp-accounting used as it comes and the Gaussian mechanism in closed form."""

import math
import time

import dp_accounting
import numpy as np
import pytest
from dp_accounting import pld, rdp
from dp_accounting.pld import privacy_loss_distribution
from scipy.optimize import brentq
from scipy.stats import norm

from fedalign.privacy.accounting import composition, covers, epsilon, epsilon_bounds, epsilon_rdp
from fedalign.privacy.events import FixedSizeGaussianEvent, GaussianEvent, PoissonGaussianEvent, Relation
from fedalign.privacy.skellam import SkellamEvent
from tests.cases import mostly_slow


def random_settings(count):
    return list(_random_settings(count))


def _random_settings(count):
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield float(10 ** rng.uniform(-3, -0.5)), float(rng.uniform(0.7, 3)), int(10 ** rng.uniform(0.5, 2.7))


def dp_accounting_pld(*events, interval=1e-3):
    accountant = pld.PLDAccountant(value_discretization_interval=interval)
    for event, count in events:
        accountant.compose(event, count)
    return accountant


def gaussian_epsilon(noise, delta):
    """Balle and Wang 2018, Theorem 8."""

    def excess(eps):
        lower, upper = 1 / (2 * noise) - eps * noise, -1 / (2 * noise) - eps * noise
        return norm.cdf(lower) - np.exp(eps + norm.logcdf(upper)) - delta

    return brentq(excess, 0, 1 / (2 * noise**2) + 10 / noise)


@pytest.mark.parametrize(("rate", "noise", "rounds"), mostly_slow(random_settings(20), random_settings(6)))
def test_ledger_is_within_a_percent_of_dp_accountings_pld_for_20_settings(rate, noise, rounds):
    event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))
    # Its default grid, but a coarser one where epsilon is large and the default takes long.
    interval = 1e-4 if rate * math.sqrt(rounds) / noise < 0.3 else 5e-4
    expected = dp_accounting_pld((event, rounds), interval=interval).get_epsilon(1e-5)
    composed = composition([(PoissonGaussianEvent(rate, noise), rounds)])
    assert epsilon(composed, 1e-5) == pytest.approx(expected, rel=0.01)


def test_poisson_and_gaussian_together_are_dp_accountings():
    events = [(dp_accounting.GaussianDpEvent(5.0), 10)]
    events += [(dp_accounting.PoissonSampledDpEvent(0.1, dp_accounting.GaussianDpEvent(1.0)), 100)]
    events += [(dp_accounting.PoissonSampledDpEvent(0.02, dp_accounting.GaussianDpEvent(0.8)), 30)]
    ours = [(GaussianEvent(5.0), 10), (PoissonGaussianEvent(0.1, 1.0), 100), (PoissonGaussianEvent(0.02, 0.8), 30)]
    expected = dp_accounting_pld(*events).get_epsilon(1e-4)
    assert epsilon(composition(ours), 1e-4) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("noise", "rounds"), [(1.0, 1), (1.0, 100), (20.0, 3), (0.3, 7), (300.0, 50)])
def test_gaussians_compose_exactly(noise, rounds):
    expected = gaussian_epsilon(noise / math.sqrt(rounds), 1e-3)
    assert epsilon(composition([(GaussianEvent(noise), rounds)]), 1e-3) == pytest.approx(expected, rel=1e-6)


def test_gaussians_of_different_noise_compose_exactly():
    total = (2 / 3.0**2 + 5 / 4.0**2) ** -0.5
    both = composition([(GaussianEvent(3.0), 2), (GaussianEvent(4.0), 5)])
    assert epsilon(both, 1e-4) == pytest.approx(gaussian_epsilon(total, 1e-4), rel=1e-6)


def test_100_of_1000_clients_with_poisson_sampling():
    composed = composition([(PoissonGaussianEvent(0.1, 1.0), 100)])
    assert epsilon(composed, 1e-3) == pytest.approx(4.784, abs=0.002)
    assert epsilon_rdp(composed, 1e-3) == pytest.approx(5.65, abs=0.02)


def test_100_of_1000_clients_without_amplification():
    """The 85.2 that is often quoted is the Rényi value; the mechanism's own epsilon is 80.0."""
    composed = composition([(GaussianEvent(1.0), 100)])
    assert epsilon_rdp(composed, 1e-3) == pytest.approx(85.2, abs=0.1)
    assert epsilon(composed, 1e-3) == pytest.approx(80.03, abs=0.01)
    assert epsilon(composed, 1e-3) == pytest.approx(gaussian_epsilon(0.1, 1e-3), rel=1e-6)


def test_one_release_of_noise_one():
    """3.54 by Rényi divergence, 3.14 exactly."""
    composed = composition([(GaussianEvent(1.0), 1)])
    assert epsilon_rdp(composed, 1e-3) == pytest.approx(3.54, abs=0.01)
    assert epsilon(composed, 1e-3) == pytest.approx(3.139, abs=0.001)


def test_512_of_12500_examples_over_976_steps():
    """The sampling rate that is quoted as 0.041 is 512 / 12500."""
    composed = composition([(PoissonGaussianEvent(512 / 12500, 1.0), 976)])
    assert epsilon(composed, 4e-5) == pytest.approx(7.944, abs=0.002)
    assert epsilon_rdp(composed, 4e-5) == pytest.approx(8.772, abs=0.005)


def test_mistake_3_fixed_size_sampling_does_not_get_the_poisson_formula():
    event = FixedSizeGaussianEvent(1000, 100, 1.0).under(Relation.REPLACE_ONE)
    assert epsilon(composition([(event, 100)]), 1e-3) == pytest.approx(79.3, abs=0.1)


def test_mistake_21_the_orders_reach_where_epsilon_is_large_or_small():
    """Against the best over a very fine grid of orders; dp-accounting's own grid is off by more at either end."""
    orders = np.concatenate([1.0101 + np.logspace(-4, 1, 4000), np.logspace(1, 4.2, 4000)])
    for noise in (0.02, 0.1, 1.0, 10.0, 1000.0):
        fine = rdp.RdpAccountant(orders)
        fine.compose(dp_accounting.GaussianDpEvent(noise))
        ours = epsilon_rdp(composition([(GaussianEvent(noise), 1)]), 1e-5)
        assert fine.get_epsilon(1e-5) <= ours * (1 + 1e-9) <= 1.02 * fine.get_epsilon(1e-5)


@pytest.mark.parametrize(("rate", "noise", "rounds"), random_settings(5))
def test_mistake_21_epsilon_is_no_less_than_a_lower_bound_and_no_more_than_renyis(rate, noise, rounds):
    """Lower bound: the same composition by PLD with an optimistic estimate; a GDP limit would fall below it."""
    optimistic = privacy_loss_distribution.from_gaussian_mechanism(
        noise, sampling_prob=rate, pessimistic_estimate=False, value_discretization_interval=1e-3
    ).self_compose(rounds)
    composed = composition([(PoissonGaussianEvent(rate, noise), rounds)])
    ours = epsilon(composed, 1e-5)
    assert optimistic.get_epsilon_for_delta(1e-5) <= ours + 1e-6
    assert ours <= epsilon_rdp(composed, 1e-5)
    assert epsilon_rdp(composed, 1e-5) <= epsilon_bounds([composed], 1e-5)[0] + 1e-9


def test_no_releases_cost_nothing():
    assert epsilon(composition([]), 1e-5) == 0
    assert epsilon_rdp(composition([(GaussianEvent(1.0), 0)]), 1e-5) == 0


@pytest.mark.parametrize(
    "event", [GaussianEvent(0.0), PoissonGaussianEvent(0.1, 0.0), FixedSizeGaussianEvent(9, 3, 0.0)]
)
def test_no_noise_is_infinite_alone_and_in_company(event):
    for others in ([], [(PoissonGaussianEvent(0.1, 1.0), 5)], [(GaussianEvent(1.0), 5)]):
        composed = composition([(event, 1), *others])
        assert math.isinf(epsilon(composed, 1e-5))
        assert math.isinf(epsilon_rdp(composed, 1e-5))


@pytest.mark.parametrize(
    "event", [GaussianEvent(1e-300), PoissonGaussianEvent(0.1, 1e-300), PoissonGaussianEvent(0.1, 1e-2)]
)
def test_next_to_no_noise_is_huge_and_no_error(event):
    assert epsilon(composition([(event, 10), (GaussianEvent(1.0), 1)]), 1e-5) > 1e4


def test_large_epsilons_do_not_take_long():
    """On dp-accounting's default grid this Gaussian alone takes minutes."""
    start = time.process_time()
    value = epsilon(composition([(GaussianEvent(0.02), 1), (PoissonGaussianEvent(0.1, 1.0), 50)]), 1e-5)
    assert time.process_time() - start < 1.5
    assert value > gaussian_epsilon(0.02, 1e-5)
    assert value == pytest.approx(gaussian_epsilon(0.02, 1e-5), rel=0.05)


def test_skellam_with_much_noise_costs_what_renyi_says_of_a_gaussian():
    skellam, gaussian = composition([(SkellamEvent(0.0, 1e3, 1e6), 10)]), composition([(GaussianEvent(1.0), 10)])
    assert epsilon(skellam, 1e-5) == pytest.approx(epsilon_rdp(gaussian, 1e-5), rel=0.05)


def test_a_composition_covers_what_is_part_of_it():
    whole = composition([(PoissonGaussianEvent(0.1, 1.0), 5), (GaussianEvent(2.0), 3)])
    assert covers(whole, composition([(PoissonGaussianEvent(0.1, 1.0), 4), (GaussianEvent(2.0), 3)]))
    assert covers(whole, composition([(GaussianEvent(2.5), 3)]))
    assert not covers(whole, composition([(PoissonGaussianEvent(0.1, 1.0), 6)]))
    assert not covers(whole, composition([(GaussianEvent(2.0), 4)]))
    assert not covers(whole, composition([(PoissonGaussianEvent(0.1, 1.1), 1)]))
