"""Proximal policy optimisation: losses of a response under a policy that has moved since the response was drawn.

All losses are one number a sequence: a mean over the sequence's own tokens, never over the batch's, so that the
gradient of one sequence can be bounded for differential privacy. Advantages, which are made once when responses have
been drawn, come from :mod:`fedalign.objectives.advantages`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def token_log_probabilities(logits: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """Return how likely a causal model finds each token given those before it.

    Parameters
    ----------
    logits : float tensor, shape (B, T, V)
        Row t is about token t + 1.
    tokens : int64 tensor, shape (B, T)
        The model's input; padding may hold any valid token.
    mask : tensor, shape (B, T)
        1 at the tokens that are asked about; the first column does not count, because nothing predicts it.

    Returns
    -------
    float32 tensor, shape (B, T - 1)
        Natural logarithm at column t for token t + 1; 0 where the mask is.
    """
    following = logits[:, :-1]
    chosen = following.gather(2, tokens[:, 1:, None])[..., 0].float()
    # Not log_softmax, which would keep a second tensor of the size of the logits for the backward pass.
    each = chosen - following.float().logsumexp(dim=2)
    # where, not a product: a padded position may hold -inf.
    return each.where(mask[:, 1:].bool(), each.new_zeros(()))


def clipped_policy_loss(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor, clip: float
) -> Tensor:
    """Return PPO's clipped surrogate objective of each sequence, negated (Schulman et al. 2017, Eq. 7).

    Parameters
    ----------
    log_probs, old_log_probs : float tensor, shape (B, S)
        Log-probabilities of the response's tokens now and when they were drawn, in nats.
    advantages : float tensor, shape (B, S)
    mask : tensor, shape (B, S)
        1 at tokens of the response.
    clip : float
        How far the ratio of probabilities may be from 1 before a gain no longer counts.

    Returns
    -------
    float tensor, shape (B,)
        Mean over the sequence's own tokens; 0 for a response without any.
    """
    inside = mask.bool()
    ratio = _inside(log_probs - old_log_probs.detach(), inside).exp()
    gains = _inside(advantages.detach(), inside)
    return -_mean_inside(torch.minimum(ratio * gains, ratio.clamp(1 - clip, 1 + clip) * gains), inside)


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float | None) -> Tensor:
    """Return half the squared error of each sequence's values, clipped as the policy is.

    With ``clip`` the larger of two errors counts: that of the value, and that of the value held within ``clip`` of
    what it was when the response was drawn.

    Parameters
    ----------
    values, old_values : float tensor, shape (B, S)
        Values of the response's tokens now and when they were drawn.
    returns : float tensor, shape (B, S)
    mask : tensor, shape (B, S)
        1 at tokens of the response.
    clip : float or None
        None leaves the values free.

    Returns
    -------
    float tensor, shape (B,)
        Mean over the sequence's own tokens; 0 for a response without any.
    """
    inside = mask.bool()
    values, target = _inside(values, inside), _inside(returns.detach(), inside)
    errors = (values - target).square()
    if clip is not None:
        before = _inside(old_values.detach(), inside)
        held = torch.minimum(torch.maximum(values, before - clip), before + clip)
        errors = torch.maximum(errors, (held - target).square())
    return 0.5 * _mean_inside(errors, inside)


def _inside(values: Tensor, inside: Tensor) -> Tensor:
    """Return values with 0 outside the response, before anything is made of them.

    Not by a product, and not at the end: what is not finite there would leave a gradient of NaN.
    """
    return values.where(inside, values.new_zeros(()))


def _mean_inside(values: Tensor, inside: Tensor) -> Tensor:
    """Return the mean of each row over its own tokens, shape (B,)."""
    return _inside(values, inside).sum(1) / inside.sum(1).clamp(min=1)
