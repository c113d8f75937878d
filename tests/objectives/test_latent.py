"""Divergences of a posterior from its prior against PyTorch's distributions, closed forms and sampling."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, kl_divergence

from fedalign.objectives.latent import (
    aggregate_posterior,
    gaussian_kl,
    gaussian_log_density,
    gumbel_softmax,
    mixture_kl,
    mixture_kl_bound,
    mixture_log_density,
    standard_kl,
)

SEED = st.integers(0, 10_000)
DIM, PARTS = 3, 4


def draw(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normal(mean: Tensor, log_variance: Tensor) -> Independent:
    return Independent(Normal(mean, (0.5 * log_variance).exp()), 1)


def mixture(seed: int, parts: int = PARTS) -> tuple[Tensor, Tensor, Tensor]:
    """Return log weights, means and log variances."""
    return torch.log_softmax(draw(seed, parts), 0), draw(seed + 1, parts, DIM, scale=2.0), draw(seed + 2, parts, DIM)


def as_distribution(log_weights: Tensor, means: Tensor, log_variances: Tensor) -> MixtureSameFamily:
    return MixtureSameFamily(Categorical(logits=log_weights), normal(means, log_variances))


@given(seed=SEED)
def test_gaussian_kl_is_pytorch_s(seed: int) -> None:
    values = [draw(seed + place, 5, DIM) for place in range(4)]
    expected = kl_divergence(normal(values[0], values[1]), normal(values[2], values[3]))
    torch.testing.assert_close(gaussian_kl(*values), expected)


@given(seed=SEED)
def test_the_standard_prior_is_a_special_case(seed: int) -> None:
    mean, log_variance = draw(seed, 5, DIM), draw(seed + 1, 5, DIM)
    zeros = torch.zeros(DIM, dtype=torch.float64)
    assert torch.equal(standard_kl(mean, log_variance), gaussian_kl(mean, log_variance, zeros, zeros))


def test_a_gaussian_does_not_diverge_from_itself() -> None:
    mean, log_variance = draw(0, 5, DIM), draw(1, 5, DIM)
    torch.testing.assert_close(gaussian_kl(mean, log_variance, mean, log_variance), torch.zeros(5).double())
    # A unit Gaussian one step away costs half a nat a dimension.
    assert float(standard_kl(torch.ones(DIM), torch.zeros(DIM))) == pytest.approx(DIM / 2)


@given(seed=SEED)
def test_densities_are_pytorch_s(seed: int) -> None:
    z, mean, log_variance = (draw(seed + place, 6, DIM) for place in range(3))
    torch.testing.assert_close(gaussian_log_density(z, mean, log_variance), normal(mean, log_variance).log_prob(z))
    parts = mixture(seed + 3)
    torch.testing.assert_close(mixture_log_density(z, *parts), as_distribution(*parts).log_prob(z))


def test_a_far_point_has_a_finite_density() -> None:
    parts = mixture(0)
    assert torch.isfinite(mixture_log_density(torch.full((1, DIM), 300.0).double(), *parts)).all()


def test_the_sampled_divergence_agrees_with_integration_in_one_dimension() -> None:
    mean, log_variance = torch.tensor([0.4]).double(), torch.tensor([-0.7]).double()
    log_weights = torch.tensor([0.3, 0.7]).double().log()
    means, log_variances = torch.tensor([[-2.0], [1.5]]).double(), torch.tensor([[0.2], [-0.5]]).double()
    grid = torch.linspace(-12, 12, 100_001, dtype=torch.float64)[:, None]
    own = normal(mean, log_variance).log_prob(grid)
    gap = own - mixture_log_density(grid, log_weights, means, log_variances)
    exact = float(torch.trapezoid(own.exp() * gap, grid[:, 0]))
    noise = draw(0, 200_000, 1)
    sampled = float(mixture_kl(mean, log_variance, log_weights, means, log_variances, noise))
    assert sampled == pytest.approx(exact, abs=0.01)


@given(seed=SEED)
def test_with_one_component_both_forms_are_the_gaussian_divergence(seed: int) -> None:
    mean, log_variance = draw(seed, 2, DIM), draw(seed + 1, 2, DIM)
    log_weights, means, log_variances = mixture(seed + 2, parts=1)
    expected = gaussian_kl(mean, log_variance, means[0], log_variances[0])
    torch.testing.assert_close(mixture_kl_bound(mean, log_variance, log_weights.exp(), means, log_variances), expected)
    # Symmetric noise of second moment one leaves no sampling error: a Gaussian's log density is a quadratic.
    noise = draw(seed + 5, 40, 2, DIM)
    noise = torch.cat([noise, -noise])
    noise = noise / noise.square().mean(0).sqrt()
    sampled = mixture_kl(mean, log_variance, log_weights, means, log_variances, noise)
    torch.testing.assert_close(sampled, expected)


@given(seed=SEED)
def test_equal_components_are_one_component(seed: int) -> None:
    mean, log_variance, noise = draw(seed, 2, DIM), draw(seed + 1, 2, DIM), draw(seed + 2, 7, 2, DIM)
    log_weights, means, log_variances = mixture(seed + 3)
    same = (means[:1].expand(PARTS, -1), log_variances[:1].expand(PARTS, -1))
    one = mixture_kl(mean, log_variance, torch.zeros(1).double(), means[:1], log_variances[:1], noise)
    torch.testing.assert_close(mixture_kl(mean, log_variance, log_weights, *same, noise), one)


@given(seed=SEED)
def test_the_bound_is_never_below_the_divergence_from_the_mixture(seed: int) -> None:
    mean, log_variance, parts = draw(seed, 4, DIM, scale=2.0), draw(seed + 1, 4, DIM), mixture(seed + 2)
    noise = draw(seed + 9, 4000, 4, DIM)
    exact = mixture_kl(mean, log_variance, *parts, noise)
    bound = mixture_kl_bound(mean, log_variance, parts[0].exp(), parts[1], parts[2])
    samples = mean + (0.5 * log_variance).exp() * noise
    error = 4 * mixture_log_density(samples, *parts).std(0) / 4000**0.5
    assert bool((bound >= exact - error).all())


def test_the_bound_pulls_to_the_middle_where_the_mixture_keeps_its_modes() -> None:
    """Two opposite components: a posterior on one of them is free under the mixture, but not under the bound."""
    means, log_variances = torch.tensor([[4.0], [-4.0]]).double(), torch.zeros(2, 1).double()
    log_weights = torch.full((2,), 0.5).double().log()
    place = torch.tensor([[4.0], [0.0]]).double()
    wide = torch.zeros(2, 1).double()
    bound = mixture_kl_bound(place, wide, log_weights.exp(), means, log_variances)
    exact = mixture_kl(place, wide, log_weights, means, log_variances, draw(0, 20_000, 2, 1))
    assert float(bound[1]) < float(bound[0])
    assert float(exact[0]) == pytest.approx(math.log(2), abs=0.03)
    assert float(exact[1]) > float(exact[0]) + 4


def test_gradients_reach_posterior_and_weights() -> None:
    mean, log_variance = draw(0, 2, DIM).requires_grad_(), draw(1, 2, DIM).requires_grad_()
    log_weights, means, log_variances = mixture(2)
    log_weights.requires_grad_()
    mixture_kl(mean, log_variance, log_weights, means, log_variances, draw(3, 5, 2, DIM)).sum().backward()
    assert all(float(t.grad.abs().min()) > 0 for t in (mean, log_variance, log_weights) if t.grad is not None)
    assert mean.grad is not None
    assert log_weights.grad is not None


@given(seed=SEED, temperature=st.floats(0.05, 50))
def test_gumbel_weights_are_a_distribution(seed: int, temperature: float) -> None:
    noise = torch.rand(5, generator=torch.Generator().manual_seed(seed))
    weights = gumbel_softmax(draw(seed, 5).float(), noise, temperature).exp()
    assert float(weights.sum()) == pytest.approx(1.0, abs=1e-5)
    assert bool((weights >= 0).all())


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_noise_at_the_ends_of_its_range_is_no_infinity(value: float) -> None:
    assert torch.isfinite(gumbel_softmax(torch.zeros(3), torch.full((3,), value), 1.0)).all()
    mixed = gumbel_softmax(torch.zeros(2), torch.tensor([value, 0.5]), 1.0)
    assert torch.isfinite(mixed).all()


def test_a_hot_gumbel_softmax_is_even_and_a_cold_one_draws_a_component() -> None:
    logits = torch.tensor([0.1, 0.2, 0.7]).log()
    noise = torch.rand(3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(gumbel_softmax(logits, noise, 1e6).exp(), torch.full((3,), 1 / 3), atol=1e-4, rtol=0)
    generator = torch.Generator().manual_seed(1)
    draws = torch.stack([gumbel_softmax(logits, torch.rand(3, generator=generator), 1e-3).exp() for _ in range(4000)])
    assert float((draws.max(1).values > 0.999).float().mean()) > 0.98
    # The Gumbel-max trick: components come up as often as their weights say.
    torch.testing.assert_close(draws.mean(0), logits.exp(), atol=4 * (0.25 / 4000) ** 0.5, rtol=0)


def test_a_common_shift_of_the_logits_changes_no_weight() -> None:
    noise = torch.rand(4, generator=torch.Generator().manual_seed(0))
    logits = draw(0, 4).float()
    torch.testing.assert_close(gumbel_softmax(logits + 7, noise, 0.5), gumbel_softmax(logits, noise, 0.5))


def test_the_aggregate_posterior_has_the_moments_of_the_mixture() -> None:
    means, log_variances = draw(0, 6, DIM), draw(1, 6, DIM)
    mean, log_variance = aggregate_posterior(means, log_variances)
    generator = torch.Generator().manual_seed(2)
    which = torch.randint(6, (200_000,), generator=generator)
    noise = torch.randn(200_000, DIM, generator=generator, dtype=torch.float64)
    samples = means[which] + (0.5 * log_variances[which]).exp() * noise
    torch.testing.assert_close(mean, samples.mean(0), atol=0.03, rtol=0)
    torch.testing.assert_close(log_variance.exp(), samples.var(0), atol=0.06, rtol=0.03)


def test_the_aggregate_of_one_posterior_is_that_posterior() -> None:
    means, log_variances = draw(0, 1, DIM), draw(1, 1, DIM)
    mean, log_variance = aggregate_posterior(means, log_variances)
    torch.testing.assert_close(mean, means[0])
    torch.testing.assert_close(log_variance, log_variances[0])
