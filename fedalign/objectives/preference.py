"""Likelihood of a judgment between two responses under a difference of rewards (Bradley and Terry 1952)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits


def preference_nll(logits: Tensor, preferred: Tensor) -> Tensor:
    """Return the negative log-likelihood of each judgment, in nats.

    Parameters
    ----------
    logits : float Tensor, shape (N,)
        Reward of response A minus reward of response B.
    preferred : float Tensor, shape (N,)
        Probability mass of the judgment on A: 1, 0, or 1/2 for a tie.

    Returns
    -------
    Tensor, shape (N,)
        ``-p log sigmoid(l) - (1 - p) log sigmoid(-l)``.
    """
    return binary_cross_entropy_with_logits(logits, preferred, reduction="none")
