"""Delta and epsilon between two normals, against quadrature and dp-accounting's Gaussian mechanism."""

from __future__ import annotations

import dp_accounting
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedalign.privacy.gaussian_divergence import gaussian_delta, gaussian_epsilon

PAIRS = [
    (0.2, 0.94, 0.96),
    (-1.9, 0.73, 0.05),
    (1.4, 1.05, 1.1),
    (0.0, 1.7, 0.2),
    (0.0, 0.4, 0.9),
    (3.0, 1.0, 2.0),
    (2.0, 6.0, 0.0),
]


def quadrature(epsilon: float, mean: float, std: float) -> float:
    """Return the larger hockey-stick divergence between N(0, 1) and N(mean, std^2) by the midpoint rule."""
    width = 1e-3
    points = np.arange(-60, 60, width) + width / 2
    p, q = stats.norm.pdf(points, mean, std), stats.norm.pdf(points)
    return max(width * float(np.maximum(a - np.exp(epsilon) * b, 0).sum()) for a, b in ((p, q), (q, p)))


@pytest.mark.parametrize(("mean", "std", "epsilon"), PAIRS)
def test_delta_is_that_of_quadrature(mean: float, std: float, epsilon: float) -> None:
    expected = quadrature(epsilon, mean, std)
    assert gaussian_delta(epsilon, 0, 1, mean, std) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("sigma", [0.05, 0.3, 1.0, 4.0, 50.0])
@pytest.mark.parametrize("delta", [1e-10, 1e-5, 0.1])
def test_equal_deviations_are_the_gaussian_mechanism(sigma: float, delta: float) -> None:
    expected = dp_accounting.get_epsilon_gaussian(sigma, delta)
    assert gaussian_epsilon(3, sigma, 4, sigma, delta) == pytest.approx(expected, rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("relative", [1e-15, -1e-15, 1e-11, -1e-11, 1e-7, -1e-7])
def test_almost_equal_deviations_are_close_to_equal_ones(relative: float) -> None:
    equal = gaussian_epsilon(0, 1, 1, 1, 1e-5)
    assert gaussian_epsilon(0, 1, 1, 1 + relative, 1e-5) == pytest.approx(equal, abs=1e-9 + 100 * abs(relative))


@settings(max_examples=60, deadline=None)
@given(
    mean=st.floats(-8, 8),
    log_std=st.floats(-2, 2),
    delta=st.sampled_from([1e-8, 1e-5, 1e-2]),
    scale=st.floats(0.01, 100),
    offset=st.floats(-10, 10),
)
def test_epsilon_inverts_delta_and_knows_neither_side_nor_unit(
    mean: float, log_std: float, delta: float, scale: float, offset: float
) -> None:
    std = float(np.exp(log_std))
    epsilon = float(gaussian_epsilon(0, 1, mean, std, delta))
    if epsilon > 0:
        assert gaussian_delta(epsilon, 0, 1, mean, std) == pytest.approx(delta, rel=1e-4)
        assert gaussian_delta(0.99 * epsilon, 0, 1, mean, std) > delta
    else:
        assert gaussian_delta(0, 0, 1, mean, std) <= delta
    assert gaussian_epsilon(mean, std, 0, 1, delta) == pytest.approx(epsilon, rel=1e-6, abs=1e-9)
    moved = gaussian_epsilon(offset, scale, offset + scale * mean, scale * std, delta)
    assert moved == pytest.approx(epsilon, rel=1e-6, abs=1e-9)


def test_arguments_broadcast() -> None:
    means = np.array([0.0, 1.0, 2.0])
    together = gaussian_epsilon(0, 1, means, 1.5, 1e-5)
    assert together == pytest.approx([float(gaussian_epsilon(0, 1, m, 1.5, 1e-5)) for m in means], rel=1e-12)


def test_the_same_distribution_needs_no_epsilon() -> None:
    assert gaussian_epsilon(0.3, 2, 0.3, 2, 1e-9) == 0


def test_hardly_any_noise_gives_a_large_epsilon_not_a_wrong_one() -> None:
    assert gaussian_epsilon(0, 1e-3, 1, 1e-3, 1e-5) == pytest.approx(dp_accounting.get_epsilon_gaussian(1e-3, 1e-5))
    assert gaussian_epsilon(0, 1e-60, 1, 1e-60, 1e-5) == np.inf


@pytest.mark.parametrize(
    "arguments", [(0, 0, 1, 1, 1e-5), (0, 1, 1, -1, 1e-5), (0, 1, np.nan, 1, 1e-5), (0, 1, 1, 1, 0), (0, 1, 1, 1, 1)]
)
def test_what_is_no_pair_of_normals_is_refused(arguments: tuple[float, float, float, float, float]) -> None:
    with pytest.raises(ValueError, match=r"positive|finite|delta"):
        gaussian_epsilon(*arguments)
