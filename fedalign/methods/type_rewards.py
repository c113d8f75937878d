"""What every type makes of every type's policy: in its own eyes, and in the judgments of those who are of the type."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedalign.contribution import State
from fedalign.data.rankings import RankingShard
from fedalign.methods.text_policies import Writing, policy_rewards, type_policies
from fedalign.methods.type_adapters import AdapterTypes
from fedalign.methods.type_model import TypeModel, all_utilities
from fedalign.objectives.plackett_luce import Orders, ranking_log_likelihood


def text_rewards(
    model: AdapterTypes, state: State, prompts: Sequence[str], writing: Writing, generator: torch.Generator
) -> Tensor:
    """Return type i's mean implicit reward of what type j's policy writes, float64 of shape (K, K).

    The matrix L of MMRA (Chidambaram et al., arXiv 2405.15065); L_ii estimates KL(pi_i || pi_ref), in nats.
    """
    policies = type_policies(model, state)
    columns = [policy_rewards(model, state, policy, prompts, writing, generator) for policy in policies]
    return torch.stack(columns, 1)


def menu_log_policies(utilities: Tensor, present: Tensor) -> Tensor:
    """Return log-probabilities of a menu's responses: the optimum of a utility against a uniform reference.

    Parameters
    ----------
    utilities : Tensor, shape (..., n, S)
    present : bool Tensor, shape (n, S)

    Returns
    -------
    float64 Tensor, shape (..., n, S)
        -inf where there is no response.
    """
    return utilities.double().masked_fill(~present, -torch.inf).log_softmax(-1)


def menu_rewards(log_policies: Tensor, chances: Tensor, present: Tensor) -> Tensor:
    """Return every type's mean implicit reward of a policy over menus: an exact expectation, nothing is drawn.

    Parameters
    ----------
    log_policies : Tensor, shape (K, n, S)
        See :func:`menu_log_policies`.
    chances : Tensor, shape (n, S)
        Of the policy; 0 where there is no response.
    present : bool Tensor, shape (n, S)

    Returns
    -------
    float64 Tensor, shape (K,)
        Mean over menus of ``sum_y pi(y) (log pi_i(y) + log S)``.
    """
    ratios = log_policies + present.sum(-1, keepdim=True).double().log()
    # An absent response has chance 0 and ratio -inf.
    return (chances * ratios.masked_fill(~present, 0.0)).sum(-1).mean(-1)


def answer_rewards_of_menus(model: TypeModel, state: State, shard: RankingShard, index: Tensor) -> Tensor:
    """Return type i's mean implicit reward of type j's policy over the menus at ``index``, float64 of shape (K, K)."""
    present = shard.tiers[index] >= 0
    policies = menu_log_policies(all_utilities(model, state, shard, index), present)
    return torch.stack([menu_rewards(policies, own.exp(), present) for own in policies], 1)


def gains(utilities: Tensor, orders: Orders) -> Tensor:
    """Return how much likelier than the reference a policy makes judgments, float64 of shape (..., n), in nats.

    The reference finds all orders of a menu equally likely.

    Parameters
    ----------
    utilities : Tensor, shape (..., n, S)
    orders : Orders
        Of the n judgments.
    """
    utilities = utilities.double()
    indifferent = torch.zeros_like(utilities[(0,) * (utilities.dim() - 2)])
    return ranking_log_likelihood(utilities, orders) - ranking_log_likelihood(indifferent, orders)


def client_prompts(shard: RankingShard, most: int, generator: torch.Generator) -> list[str]:
    """Return different prompts of a client's training judgments, drawn at random, ``most`` at most."""
    order = shard.train[torch.randperm(len(shard.train), generator=generator)]
    return list(dict.fromkeys(shard.prompts[judgment] for judgment in order.tolist()))[:most]
