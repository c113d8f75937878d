"""Mixtures of experts' next-token distributions, and what is left of a distribution of which little is known.

After Zhou et al. (arXiv 2407.04181; ICLR 2025 submission "On Orchestrating Personalized LLMs"). A linear mixture's
gradient needs one number an expert and token: ``d log pi / d alpha_i = p_i(y_t) / sum_l alpha_l p_l(y_t)``. So
responses are drawn once, n numbers a token are kept, and weights are trained with no expert in memory.
"""

from __future__ import annotations

import torch
from torch import Tensor


def expert_log_weights(scores: Tensor, active: Tensor) -> Tensor:
    """Return the logarithm of weights on the simplex: a softmax over the experts that are active.

    Parameters
    ----------
    scores : float tensor, shape (..., n)
    active : bool tensor, broadcastable to (..., n)
        At least one expert everywhere.

    Returns
    -------
    float tensor, shape (..., n)
        ``-inf`` for experts that are not active; no gradient reaches their scores.
    """
    return scores.masked_fill(~active, -torch.inf).log_softmax(-1)


def linear_log_probability(log_weights: Tensor, log_probs: Tensor) -> Tensor:
    """Return how likely a linear mixture finds a token: ``log sum_i alpha_i p_i`` (their Eq. 1).

    Parameters
    ----------
    log_weights : float tensor, shape (..., n)
        ``-inf`` for experts that have no part.
    log_probs : float tensor, shape (..., n)
        Each expert's log-probability of that token; anything finite for experts that have no part.

    Returns
    -------
    float tensor, shape (...)
    """
    return torch.logsumexp(log_weights + log_probs, -1)


def log_linear_log_probability(log_weights: Tensor, log_probs: Tensor, tokens: Tensor) -> Tensor:
    """Return how likely a log-linear mixture finds a token: ``prod_i p_i^alpha_i``, normalised over the vocabulary.

    Unlike the linear mixture it can be sharper than every expert, and it needs all of their distributions.

    Parameters
    ----------
    log_weights : float tensor, shape (..., n)
    log_probs : float tensor, shape (..., n, V)
        Anything finite for experts that have no part.
    tokens : int64 tensor, shape (...)

    Returns
    -------
    float tensor, shape (...)
    """
    merged = (log_weights.exp()[..., None] * log_probs).sum(-2)
    return merged.gather(-1, tokens[..., None])[..., 0] - merged.logsumexp(-1)


def truncate(log_probs: Tensor, top: int, floor: float) -> Tensor:
    """Return what is left of distributions of which only the likeliest tokens are known.

    The tokens that are known are normalised to a sum of ``1 - floor``; ``floor`` is spread evenly over the vocabulary,
    so that a token that another expert drew is unlikely here, and never impossible.

    Parameters
    ----------
    log_probs : float tensor, shape (..., V)
    top : int
        How many tokens are known; as many as V leave the distribution but for the floor.
    floor : float
        In (0, 1).

    Returns
    -------
    float tensor, shape (..., V)
        Log-probabilities, all of them finite.
    """
    vocabulary = log_probs.shape[-1]
    values, places = log_probs.topk(min(top, vocabulary), dim=-1)
    kept = values.softmax(-1) * (1.0 - floor)
    whole = torch.full_like(log_probs, floor / vocabulary)
    return whole.scatter_add(-1, places, kept).log()
