"""How likely a ranking with ties is under utilities: the Plackett-Luce probability of all orders that agree with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, permutations, product

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

MOST_ORDERS = 5040
"""Most orders that one judgment may agree with: those of seven responses that tie."""


@dataclass(frozen=True, eq=False)
class Orders:
    """All orders that agree with each of J judgments over at most S responses, L at most.

    Parameters
    ----------
    index : int64 Tensor, shape (J, L, S)
        Responses from best to worst; absent ones come last. The order within the last tier is arbitrary and the same in
        all orders, because it does not change their probability.
    valid : bool Tensor, shape (J, L)
        False where a judgment agrees with fewer than L orders.
    stages : int64 Tensor, shape (J,)
        How many choices the judgment tells: its responses before the last tier.
    present : bool Tensor, shape (J, S)
        Which responses there are.
    """

    index: Tensor
    valid: Tensor
    stages: Tensor
    present: Tensor

    def rows(self, index: Tensor) -> Orders:
        """Return the orders of the judgments at ``index``, int64 of shape (n,)."""
        return Orders(self.index[index], self.valid[index], self.stages[index], self.present[index])


def orders_of(tiers: Tensor) -> Orders:
    """Return all orders that agree with each judgment, but for those that only permute its last tier.

    Parameters
    ----------
    tiers : int64 Tensor, shape (J, S)
        0 is best; -1 where there is no response.

    Raises
    ------
    ValueError
        If a judgment agrees with more than ``MOST_ORDERS`` orders.
    """
    # Few patterns of tiers stand behind many judgments.
    patterns, which = torch.unique(tiers.cpu(), dim=0, return_inverse=True)
    blocks = [_blocks(row) for row in patterns.tolist()]
    for number, found in enumerate(blocks):
        if math.prod(math.factorial(len(block)) for block in found[:-1]) > MOST_ORDERS:
            judgment = int((which == number).nonzero()[0])
            raise ValueError(
                f"judgment {judgment} with tiers {patterns[number].tolist()} agrees with more than {MOST_ORDERS} orders"
            )
    orders = [_agreeing(found, tiers.shape[1]) for found in blocks]
    most = max((len(each) for each in orders), default=1)
    padded = [each + each[:1] * (most - len(each)) for each in orders]
    index = torch.tensor(padded, dtype=torch.int64).reshape(-1, most, tiers.shape[1])
    counts = torch.tensor([len(each) for each in orders], dtype=torch.int64)
    stages = torch.tensor([sum(map(len, found[:-1])) for found in blocks], dtype=torch.int64)
    valid = torch.arange(most) < counts[:, None]
    device = tiers.device
    return Orders(index[which].to(device), valid[which].to(device), stages[which].to(device), tiers >= 0)


def ranking_log_likelihood(utilities: Tensor, orders: Orders) -> Tensor:
    """Return the log-probability of each judgment (Plackett 1975; Luce 1959).

    An order is a series of choices without replacement, each a softmax over what is left. A judgment with ties has the
    summed probability of all orders that agree with it, so that a pair is the Bradley-Terry model, a choice of the best
    is a softmax, and probabilities of all rankings with tiers of given sizes sum to 1.

    Parameters
    ----------
    utilities : float Tensor, shape (..., J, S)
        What stands at absent responses does not count, NaN included.
    orders : Orders
        Of the J judgments.

    Returns
    -------
    Tensor, shape (..., J)
        In nats, never positive; 0 for a judgment in which all tie. Differentiable.
    """
    menus = (*utilities.shape[:-2], *orders.index.shape)
    ranked = utilities[..., None, :].expand(menus).gather(-1, orders.index.expand(menus))
    there = orders.present[:, None, :].expand(orders.index.shape).gather(-1, orders.index)
    lowest = torch.finfo(utilities.dtype).min
    # Finite instead of -inf: a softmax over nothing but absent responses would have NaN for a gradient.
    total = utilities.new_zeros(ranked.shape[:-1])
    for stage in range(int(orders.stages.max()) if len(orders.stages) else 0):
        # Differences first: utilities may be large, and only they matter.
        others = (ranked[..., stage + 1 :] - ranked[..., stage : stage + 1]).masked_fill(
            ~there[..., stage + 1 :], lowest
        )
        chosen = logsigmoid(-others.logsumexp(-1))
        total = total + chosen.masked_fill(orders.stages[:, None] <= stage, 0.0)
    if total.shape[-1] == 1:
        return total[..., 0]
    return total.masked_fill(~orders.valid, lowest).logsumexp(-1).clamp(max=0.0)


def concordance(utilities: Tensor, tiers: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many pairs of each judgment the utilities order as the judgment does, and how many pairs there are.

    Parameters
    ----------
    utilities : float Tensor, shape (..., J, S)
    tiers : int64 Tensor, shape (J, S)
        0 is best; -1 where there is no response.

    Returns
    -------
    correct : Tensor, shape (..., J)
        Pairs of different tiers in which the better response has the higher utility; equal utilities count a half.
    strict : Tensor, shape (J,)
        Pairs of different tiers.
    """
    differences, strict = _pairs(utilities, tiers)
    agree = (differences.sign() + 1) / 2
    return agree.masked_fill(~strict, 0.0).sum((-2, -1)), strict.sum((-2, -1)).to(utilities.dtype)


def margins(utilities: Tensor, tiers: Tensor) -> Tensor:
    """Return by how much the utility of the better response exceeds that of the worse, a judgment's mean over pairs.

    Parameters
    ----------
    utilities : float Tensor, shape (..., J, S)
    tiers : int64 Tensor, shape (J, S)
        0 is best; -1 where there is no response.

    Returns
    -------
    Tensor, shape (..., J)
        0 for a judgment in which all tie.
    """
    differences, strict = _pairs(utilities, tiers)
    return differences.masked_fill(~strict, 0.0).sum((-2, -1)) / strict.sum((-2, -1)).clamp(min=1)


def _pairs(utilities: Tensor, tiers: Tensor) -> tuple[Tensor, Tensor]:
    """Return utility differences (..., J, S, S) and where the first response is in a better tier (J, S, S)."""
    strict = (tiers[:, :, None] >= 0) & (tiers[:, :, None] < tiers[:, None, :])
    return utilities[..., :, None] - utilities[..., None, :], strict


def _blocks(tiers: Sequence[int]) -> list[list[int]]:
    """Return the responses of each tier, best tier first."""
    return [[at for at, tier in enumerate(tiers) if tier == each] for each in sorted({t for t in tiers if t >= 0})]


def _agreeing(blocks: Sequence[Sequence[int]], responses: int) -> list[list[int]]:
    """Return all orders of the responses that keep to the blocks, the last block and absent responses in one order."""
    ranked = set(chain(*blocks))
    tail = [*chain(*blocks[-1:]), *(at for at in range(responses) if at not in ranked)]
    return [[*chain(*chosen), *tail] for chosen in product(*(permutations(block) for block in blocks[:-1]))]


__all__ = ["MOST_ORDERS", "Orders", "concordance", "margins", "orders_of", "ranking_log_likelihood"]
