"""Merging experts token by token: mixtures of next-token distributions, their truncation, and what moves the weights.

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


def bradley_terry_reward(rewards: Tensor, reference: Tensor, scale: float) -> Tensor:
    """Return the probability that a response beats a reference response to the same prompt (their Eq. 2).

    It puts dimensions whose rewards have different units on one scale, in [0, 1].

    Parameters
    ----------
    rewards, reference : float tensor, shape (...)
    scale : float
        Nats of preference for a unit of reward; positive.
    """
    return torch.sigmoid(scale * (rewards - reference))


def rebel_loss(log_probs: Tensor, old_log_probs: Tensor, rewards: Tensor, eta: float) -> Tensor:
    """Return REBEL's loss of pairs of responses to one prompt each (Gao et al. 2024; Zhou et al., Eq. 3).

    Parameters
    ----------
    log_probs, old_log_probs : float tensor, shape (B, 2)
        Log-probabilities of whole responses now and when they were drawn, in nats.
    rewards : float tensor, shape (B, 2)
    eta : float
        Nats of log-ratio that a unit of reward is to become.

    Returns
    -------
    float tensor, shape (B,)
        ``((log ratio of the first) - (log ratio of the second) - eta (difference of rewards))^2``.
    """
    ratios = log_probs - old_log_probs.detach()
    wanted = eta * (rewards[:, 0] - rewards[:, 1])
    return (ratios[:, 0] - ratios[:, 1] - wanted).square()
