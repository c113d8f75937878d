"""Divergences of a diagonal Gaussian posterior from its prior: a standard normal or a mixture of Gaussians."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LOG_2PI = math.log(2 * math.pi)


def gaussian_kl(mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor) -> Tensor:
    """Return KL(N(mean, v) || N(other_mean, other_v)) in nats, summed over the last dimension; shapes broadcast."""
    difference = (mean - other_mean).square()
    ratio = (log_variance.exp() + difference) / other_log_variance.exp()
    return 0.5 * (ratio - 1 + other_log_variance - log_variance).sum(-1)


def standard_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return KL(N(mean, v) || N(0, I)) in nats (VPL, Poddar et al. 2024); shape (..., d) to (...)."""
    return 0.5 * (log_variance.exp() + mean.square() - 1 - log_variance).sum(-1)


def gaussian_log_density(z: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return log N(z; mean, v), summed over the last dimension; shapes broadcast."""
    return -0.5 * ((z - mean).square() / log_variance.exp() + log_variance + _LOG_2PI).sum(-1)


def mixture_log_density(z: Tensor, log_weights: Tensor, means: Tensor, log_variances: Tensor) -> Tensor:
    """Return log sum_j w_j N(z; mean_j, v_j).

    Parameters
    ----------
    z : Tensor, shape (..., d)
    log_weights : Tensor, shape (J,)
        Of weights that sum to 1.
    means, log_variances : Tensor, shape (J, d)
    """
    return torch.logsumexp(log_weights + gaussian_log_density(z.unsqueeze(-2), means, log_variances), -1)


def mixture_kl_bound(
    mean: Tensor, log_variance: Tensor, weights: Tensor, means: Tensor, log_variances: Tensor
) -> Tensor:
    """Return sum_j w_j KL(q || N_j), the upper bound that FedVPA-GP minimises (its Eq. 7; VMTL 2021, Prop. 1).

    Parameters
    ----------
    mean, log_variance : Tensor, shape (..., d)
    weights : Tensor, shape (J,)
    means, log_variances : Tensor, shape (J, d)

    Returns
    -------
    Tensor, shape (...)
        In nats; never below the divergence from the mixture itself.
    """
    apart = gaussian_kl(mean.unsqueeze(-2), log_variance.unsqueeze(-2), means, log_variances)
    return (weights * apart).sum(-1)


def mixture_kl(
    mean: Tensor, log_variance: Tensor, log_weights: Tensor, means: Tensor, log_variances: Tensor, noise: Tensor
) -> Tensor:
    """Return a Monte Carlo estimate of KL(q || sum_j w_j N_j) (FedVPA-GP, Eq. 6, log-sum-exp).

    Parameters
    ----------
    mean, log_variance : Tensor, shape (..., d)
    log_weights : Tensor, shape (J,)
    means, log_variances : Tensor, shape (J, d)
    noise : Tensor, shape (S, ..., d)
        Standard normal draws; the estimate is the mean over S samples ``mean + std * noise``.

    Returns
    -------
    Tensor, shape (...)
        In nats. The posterior's own entropy is exact; only the mixture's log density is sampled.
    """
    samples = mean + (0.5 * log_variance).exp() * noise
    entropy = 0.5 * (log_variance + 1 + _LOG_2PI).sum(-1)
    return -entropy - mixture_log_density(samples, log_weights, means, log_variances).mean(0)


def gumbel_softmax(logits: Tensor, noise: Tensor, temperature: float) -> Tensor:
    """Return log weights ``log softmax((log_softmax(logits) + g) / tau)`` with ``g = -log(-log(noise))``.

    FedVPA-GP, Eq. 8.

    Parameters
    ----------
    logits : Tensor, shape (J,)
    noise : Tensor, shape (J,)
        Uniform on (0, 1).
    temperature : float
        Positive.
    """
    gumbel = -(-noise.clamp(1e-9, 1 - 1e-7).log()).log()
    return torch.log_softmax((torch.log_softmax(logits, -1) + gumbel) / temperature, -1)


def aggregate_posterior(means: Tensor, log_variances: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and log variance of a uniform mixture of N posteriors (law of total variance); (N, d) to (d,)."""
    variance = log_variances.exp().mean(0) + means.var(0, correction=0)
    return means.mean(0), variance.log()
