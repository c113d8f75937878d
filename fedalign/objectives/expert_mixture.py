"""What moves the weights of merged experts: rewards on one scale, and REBEL's regression of log-ratios on them.

After Zhou et al. (arXiv 2407.04181; ICLR 2025 submission "On Orchestrating Personalized LLMs") and Gao et al. (2024).
"""

from __future__ import annotations

import torch
from torch import Tensor


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
