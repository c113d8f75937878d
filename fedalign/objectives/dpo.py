"""Direct preference optimisation: how likely a model finds a response, and the loss of a preferred pair."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def sequence_log_probability(logits: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """Return the log-probability of each response given what stands before it.

    Parameters
    ----------
    logits : float tensor, shape (B, T, V)
        A causal model's: row t is about token t + 1.
    tokens : int64 tensor, shape (B, T)
        The model's input; padding may hold any valid token.
    mask : tensor, shape (B, T)
        1 at tokens of the response, 0 at the prompt and at padding. The first column does not count, because
        nothing predicts it.

    Returns
    -------
    float32 tensor, shape (B,)
        Natural logarithm, summed over the response's tokens.
    """
    chosen = logits[:, :-1].gather(2, tokens[:, 1:, None])[..., 0].float()
    # Not log_softmax, which would keep a second tensor of the size of the logits for the backward pass.
    each = chosen - logits[:, :-1].float().logsumexp(dim=2)
    # where, not a product: a padded position may hold -inf.
    return each.where(mask[:, 1:].bool(), each.new_zeros(())).sum(dim=1)


def dpo_loss(
    policy_chosen: Tensor, policy_rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    """Return the loss and the reward margin of every pair (Rafailov et al. 2023, Eq. 7).

    The policy's implicit reward of a response is ``beta * (log policy - log reference)``; the loss is the negative
    log-likelihood of the preference under the Bradley-Terry model of these rewards.

    Parameters
    ----------
    policy_chosen, policy_rejected, reference_chosen, reference_rejected : float tensor, shape (B,)
        Log-probabilities of whole responses.
    beta : float
        Strength of the pull to the reference; positive.

    Returns
    -------
    loss : float tensor, shape (B,)
    margin : float tensor, shape (B,)
        Reward of the chosen response minus that of the rejected one.
    """
    margin = beta * ((policy_chosen - reference_chosen) - (policy_rejected - reference_rejected))
    return -F.logsigmoid(margin), margin
