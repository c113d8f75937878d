"""Alignment score: one minus the Jensen-Shannon distance between predicted and true answer distributions."""

from __future__ import annotations

import torch
from torch import Tensor


def jensen_shannon_distance(predicted: Tensor, actual: Tensor, segments: Tensor, n_segments: int) -> Tensor:
    """Return the Jensen-Shannon distance of every question, natural logarithm.

    Parameters
    ----------
    predicted, actual : Tensor, shape (points,)
        Shares, non-negative, summing to 1 within each segment.
    segments : int64 Tensor, shape (points,)
    n_segments : int

    Returns
    -------
    float64 Tensor, shape (n_segments,)
        Between 0 and sqrt(ln 2) = 0.8326.

    Raises
    ------
    ValueError
        If a share is negative, NaN or infinite, or a question's shares do not sum to 1: an undefined
        distance is an error here, never a perfect score.
    """
    p, q = predicted.double(), actual.double()
    for name, shares in (("predicted", p), ("actual", q)):
        if not bool(torch.isfinite(shares).all()) or bool((shares < 0).any()):
            raise ValueError(f"{name} shares must be finite and non-negative")
        sums = torch.zeros(n_segments, dtype=torch.float64).index_add(0, segments, shares)
        if not torch.allclose(sums, torch.ones_like(sums), atol=1e-4):
            raise ValueError(f"{name} shares must sum to 1 within each question")
    middle = 0.5 * (p + q)
    divergence = 0.5 * (torch.xlogy(p, p / middle.clamp_min(1e-300)) + torch.xlogy(q, q / middle.clamp_min(1e-300)))
    # Rounding can leave a question of equal shares at -1e-17, whose root would be NaN.
    return torch.zeros(n_segments, dtype=torch.float64).index_add(0, segments, divergence).clamp_min(0).sqrt()
