"""Several reward models for one person: which of them explains its judgments, and what they say together."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

_SMALLEST_CURVATURE = 1e-12


def responsibilities(losses: Tensor, log_weights: Tensor) -> Tensor:
    """Return p(component | judgment), the E-step of FedEM (Marfoq et al. 2021, arXiv 2108.10252, Eq. 7).

    Parameters
    ----------
    losses : Tensor, shape (K, N)
        Negative log-likelihood of each judgment under each component.
    log_weights : Tensor, shape (K,)

    Returns
    -------
    Tensor, shape (K, N)
        ``softmax_k(log w_k - loss_k)``; columns sum to 1.
    """
    return torch.softmax(log_weights[:, None] - losses, 0)


def mixture_weights(losses: Tensor, start: Tensor, iterations: int) -> Tensor:
    """Return log mixture weights after some iterations of EM with fixed components (FedEM, Eq. 7 and 8).

    Parameters
    ----------
    losses : Tensor, shape (K, N)
        Negative log-likelihoods; without any judgment (N = 0) the weights stay as they are.
    start : Tensor, shape (K,)
        Log weights to start from.
    iterations : int
    """
    log_weights = start
    if losses.shape[1]:
        for _ in range(iterations):
            log_weights = responsibilities(losses, log_weights).mean(1).log()
    return log_weights


def mixture_logits(logits: Tensor, log_weights: Tensor) -> Tensor:
    """Return the log odds of the probability ``sum_k w_k sigmoid(logits_k)``, in float64.

    Parameters
    ----------
    logits : Tensor, shape (K, ...)
    log_weights : Tensor, shape (K,)

    Returns
    -------
    float64 Tensor, shape (...)
    """
    logits = logits.double()
    weights = log_weights.double().reshape(-1, *[1] * (logits.dim() - 1))
    return torch.logsumexp(weights + logsigmoid(logits), 0) - torch.logsumexp(weights + logsigmoid(-logits), 0)


def blend(logits: Tensor, weights: Tensor) -> Tensor:
    """Return the log odds under the reward ``sum_k w_k r_k`` (PAL, Chen et al. 2025, arXiv 2406.08469).

    Parameters
    ----------
    logits : Tensor, shape (K, ...)
    weights : Tensor, shape (K,)

    Returns
    -------
    Tensor, shape (...)
    """
    blended: Tensor = torch.tensordot(weights.to(logits), logits, dims=1)
    return blended


def blend_weights(logits: Tensor, preferred: Tensor, iterations: int) -> Tensor:
    """Return the weights of :func:`blend` under which some judgments are likeliest, for fixed rewards.

    The negative log-likelihood is convex in the weights. They start equal and follow exponentiated gradients, whose
    step is 1 / L, with L a bound on the curvature in the 1-norm: the loss is within ``L log(K) / iterations`` of the
    least one, without a learning rate to be chosen.

    Parameters
    ----------
    logits : Tensor, shape (K, N)
    preferred : Tensor, shape (N,)
        Probability mass of the judgment on A: 1, 0, or 1/2 for a tie.
    iterations : int

    Returns
    -------
    float64 Tensor, shape (K,)
        Not negative, sum 1; equal weights if there is no judgment.
    """
    logits, preferred = logits.detach().double(), preferred.double()
    log_weights = logits.new_zeros(len(logits))
    if not logits.shape[1]:
        return torch.softmax(log_weights, 0)
    curvature = 0.25 * logits.abs().amax(0).square().mean().clamp(min=_SMALLEST_CURVATURE)
    for _ in range(iterations):
        error = torch.sigmoid(blend(logits, torch.softmax(log_weights, 0))) - preferred
        log_weights = log_weights - (logits * error).mean(1) / curvature
    return torch.softmax(log_weights, 0)
