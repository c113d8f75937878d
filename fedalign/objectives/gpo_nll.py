"""The GPO objective: Gaussian likelihood of shares around a softmax over each question's options."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def segment_log_softmax(logits: Tensor, segments: Tensor, n_segments: int) -> Tensor:
    """Return the log-softmax within each segment.

    Parameters
    ----------
    logits : Tensor, shape (points,)
    segments : int64 Tensor, shape (points,)
        Which of the ``n_segments`` questions a point belongs to; every segment has at least one point.
    n_segments : int

    Returns
    -------
    Tensor, shape (points,)
        Exponentials sum to 1 within each segment.
    """
    top = torch.full((n_segments,), -torch.inf, dtype=logits.dtype, device=logits.device)
    top = top.scatter_reduce(0, segments, logits.detach(), "amax")
    shifted = logits - top[segments]
    mass = torch.zeros(n_segments, dtype=logits.dtype, device=logits.device)
    mass = mass.index_add(0, segments, shifted.exp())
    return shifted - mass.log()[segments]


def gpo_nll(mean: Tensor, log_std: Tensor, shares: Tensor, segments: Tensor, n_segments: int) -> Tensor:
    """Return the negative log-likelihood of every target point (GPO, Zhao et al. 2024, eq. 5; released code).

    The predicted share of an option is the softmax of ``mean`` within its question, and the observed
    share is Gaussian around it with standard deviation ``exp(log_std)``. The value can be negative.

    Parameters
    ----------
    mean, log_std, shares : Tensor, shape (points,)
    segments : int64 Tensor, shape (points,)
        Question of each point.
    n_segments : int

    Returns
    -------
    Tensor, shape (points,)
    """
    predicted = segment_log_softmax(mean, segments, n_segments).exp()
    standardised = (shares - predicted) * torch.exp(-log_std)
    return 0.5 * standardised.square() + log_std + 0.5 * math.log(2 * math.pi)
