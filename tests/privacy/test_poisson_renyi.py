"""The Rényi curve of the Poisson-sampled Gaussian mechanism, against Opacus and dp-accounting."""

import dp_accounting
import numpy as np
import pytest
from dp_accounting import rdp
from opacus.accountants.analysis.rdp import compute_rdp

from fedalign.privacy.poisson_renyi import _log_moment, poisson_gaussian_rdp

ORDERS = np.array([1.02, 1.3, 2, 2.5, 3, 3.7, 5, 8, 12, 64, 512])


@pytest.mark.parametrize(("rate", "noise"), [(0.1, 1.0), (0.01, 0.3), (0.5, 5.0), (0.999, 0.01), (1e-6, 0.05)])
def test_is_opacus_curve(rate, noise):
    expected = compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=ORDERS.tolist())
    np.testing.assert_allclose(poisson_gaussian_rdp(rate, noise, ORDERS), expected, rtol=1e-6)


def test_is_dp_accountings_at_whole_orders():
    whole = ORDERS[np.round(ORDERS) == ORDERS]
    accountant = rdp.RdpAccountant(whole)
    accountant.compose(dp_accounting.PoissonSampledDpEvent(0.2, dp_accounting.GaussianDpEvent(1.5)))
    np.testing.assert_allclose(poisson_gaussian_rdp(0.2, 1.5, whole), accountant.rdp, rtol=1e-9)


@pytest.mark.parametrize(("rate", "noise"), [(0.3, 2.0), (1e-4, 100.0)])
def test_order_two_in_closed_form_also_where_it_is_tiny(rate, noise):
    """log(1 + q^2 (exp(1/z^2) - 1)); the second setting gives 1e-12, which a plain sum loses."""
    expected = np.log1p(rate**2 * np.expm1(noise**-2))
    np.testing.assert_allclose(poisson_gaussian_rdp(rate, noise, np.array([2.0])), expected, rtol=1e-9)
    np.testing.assert_allclose(_log_moment(rate, noise, 2.0), expected, rtol=1e-9)


def test_rate_one_is_the_gaussian_mechanism():
    np.testing.assert_allclose(poisson_gaussian_rdp(1.0, 3.0, ORDERS), ORDERS / 18)
    np.testing.assert_allclose(poisson_gaussian_rdp(1 - 1e-12, 3.0, ORDERS), ORDERS / 18, rtol=1e-6)
