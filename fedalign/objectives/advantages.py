"""From scores of whole responses to advantages of their tokens: rewards less a KL penalty, GAE, and group baselines.

Responses are rows that start at position 0 of S and end where their mask does; what stands after counts as 0. All
but :func:`whiten` treat every sequence, or every group of responses to one prompt, on its own: what others of the
batch hold does not move a bit of it, so that the gradient of one sequence can be bounded for differential privacy.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Place = Literal["last", "token"]
"""Where a response pays for leaving the reference: all of it at its last token, or at each token its share."""

Baseline = Literal["rloo", "grpo"]
"""What the rewards of a prompt's responses are compared with."""

_NEGLIGIBLE = 1e-8


@torch.no_grad()
def kl_adjusted_rewards(
    scores: Tensor, log_probs: Tensor, reference: Tensor, mask: Tensor, beta: float, place: Place
) -> Tensor:
    """Return rewards by token whose sum is ``score - beta * log(policy / reference)`` of the response.

    ``last`` pays everything at the last token (Wu et al. 2024, section 3); ``token`` pays each token's log ratio where
    it arises and the score at the end (Ziegler et al. 2019, Eq. 2). Undiscounted returns of whole responses agree.

    Parameters
    ----------
    scores : float tensor, shape (B,)
        Of whole responses.
    log_probs, reference : float tensor, shape (B, S)
        Log-probabilities of the response's tokens under the policy that drew them and under the reference, in nats.
    mask : tensor, shape (B, S)
        1 at tokens of the response. A response without tokens gets no reward.
    beta : float
        Weight of the penalty; fixed, since a coefficient that follows the batch couples its sequences.
    place : {"last", "token"}

    Returns
    -------
    float tensor, shape (B, S)
    """
    inside = mask.bool()
    penalty = _zero_outside(beta * (log_probs - reference), inside)
    last = inside & (inside.cumsum(1) == inside.sum(1, keepdim=True))
    if place == "last":
        return _zero_outside((scores - penalty.sum(1))[:, None].expand_as(penalty), last)
    return _zero_outside(scores[:, None].expand_as(penalty), last) - penalty


@torch.no_grad()
def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Return generalised advantage estimates and the returns that values should meet (Schulman et al. 2016, Eq. 16).

    Parameters
    ----------
    rewards : float tensor, shape (B, S)
    values : float tensor, shape (B, S)
        Expected return before each token is drawn; after the last token it is 0.
    mask : tensor, shape (B, S)
        1 at tokens of the response.
    gamma : float
        Discount of a token.
    lam : float
        1 weighs all of the response's rewards against the value, 0 looks one token ahead.

    Returns
    -------
    advantages, returns : float tensor, shape (B, S)
        Returns are advantages plus values. Both are 0 outside the response.
    """
    inside = mask.bool()
    rewards, values = _zero_outside(rewards, inside), _zero_outside(values, inside)
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], 1)
    surprise = rewards + gamma * following - values
    advantages = torch.zeros_like(surprise)
    later = torch.zeros_like(surprise[:, 0])
    for position in reversed(range(surprise.shape[1])):
        later = surprise[:, position] + gamma * lam * later
        advantages[:, position] = later
    return advantages, advantages + values


@torch.no_grad()
def group_advantages(rewards: Tensor, kind: Baseline) -> Tensor:
    """Return advantages of k responses to one prompt by comparing them with each other; no value network is needed.

    ``rloo`` takes from each reward the mean of the k - 1 others, which leaves the policy gradient unbiased (Ahmadian et
    al. 2024, Eq. 6). ``grpo`` takes the mean of all k and divides by their standard deviation over k (Shao et al. 2024,
    section 4.1.2); where all are equal it is 0. The advantage of a response depends on the group's other responses, so
    the unit whose gradient is bounded is the prompt with all of its responses.

    Parameters
    ----------
    rewards : float tensor, shape (N, k)
        k responses to each of N prompts.
    kind : {"rloo", "grpo"}

    Returns
    -------
    float tensor, shape (N, k)

    Raises
    ------
    ValueError
        If k is 1: there is nothing to compare with.
    """
    count = rewards.shape[1]
    if count < 2:
        raise ValueError("a response is compared with others to the same prompt; there must be 2 or more")
    # Equal rewards may miss their own mean by a rounding error, which a division, or Adam, would blow up to 1.
    equal = (rewards == rewards[:, :1]).all(1, keepdim=True)
    centred = (rewards - rewards.mean(1, keepdim=True)).masked_fill(equal, 0.0)
    if kind == "rloo":
        return centred * (count / (count - 1))
    spread = rewards.std(1, correction=0, keepdim=True)
    return centred / spread.where(~equal, torch.ones_like(spread))


@torch.no_grad()
def whiten(advantages: Tensor, mask: Tensor) -> Tensor:
    """Return advantages with mean 0 and standard deviation 1 over all tokens of the batch.

    For training without privacy only: it makes every sequence's loss a function of all others', so that bounding its
    gradient no longer bounds what the sequence did.

    Parameters
    ----------
    advantages : float tensor, shape (B, S)
    mask : tensor, shape (B, S)

    Returns
    -------
    float tensor, shape (B, S)
        0 outside the responses.
    """
    inside = mask.bool()
    count = inside.sum().clamp(min=1)
    centred = _zero_outside(advantages - _zero_outside(advantages, inside).sum() / count, inside)
    return centred * ((centred.square().sum() / count) + _NEGLIGIBLE).rsqrt()


def _zero_outside(values: Tensor, inside: Tensor) -> Tensor:
    """Return values with 0 outside a response; not by a product, since there may be infinities."""
    return values.where(inside, values.new_zeros(()))
