"""Federated averaging head by head: each head moves along the mean change of those who trained it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedalign.contribution import (
    DELTA,
    WEIGHT,
    Contribution,
    StackedContribution,
    State,
    mean_delta,
    stacked_change,
)

HEAD_WEIGHTS = "head_weights"


def head_of(name: str) -> int:
    """Return which head a tensor ``heads.<k>. ...`` of the state belongs to."""
    return int(name.split(".")[1])


def change_by_head(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], weight: float, shares: Tensor
) -> Contribution:
    """Return what a client adds: each head's change times the client's weight in it, and these weights.

    Parameters
    ----------
    before, after : mapping from name to Tensor
        The heads' parameters; the names of ``after`` count.
    weight : float
        The client's weight in the mean; positive.
    shares : Tensor, shape (K,)
        Its part in each head, within [0, 1].
    """
    weights = weight * shares
    changes = {DELTA + name: (tensor - before[name]) * float(weights[head_of(name)]) for name, tensor in after.items()}
    # The weight of an only head is the client's own.
    return Contribution(changes if len(shares) == 1 else {**changes, HEAD_WEIGHTS: weights}, {WEIGHT: weight})


def stacked_change_by_head(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    weights: Sequence[float],
    shares: Sequence[Tensor],
    own: Sequence[Contribution],
    failures: Mapping[int, Exception],
) -> StackedContribution:
    """Return what several clients add, see :func:`change_by_head`.

    Parameters
    ----------
    before, after
        ``after`` has the clients along its tensors' first dimension.
    weights, shares
        Of each client.
    own : sequence of Contribution
        What each adds besides.
    failures : mapping from int to Exception
        Clients that add nothing.
    """
    factors = [(weight * share).tolist() for weight, share in zip(weights, shares, strict=True)]
    tensors = {
        DELTA + name: stacked_change(before[name], tensor, [each[head_of(name)] for each in factors])
        for name, tensor in after.items()
    }
    if len(shares[0]) > 1:
        tensors[HEAD_WEIGHTS] = torch.tensor(factors)
    weighted = [
        Contribution(rest.tensors, {WEIGHT: weight, **rest.scalars}) for weight, rest in zip(weights, own, strict=True)
    ]
    return StackedContribution(tensors, weighted, failures)


def mean_by_head(contribution: Contribution) -> State:
    """Return each head's mean change, in float64, from a total; a head that nobody trained has none."""
    if HEAD_WEIGHTS not in contribution.tensors:
        return mean_delta(contribution)
    weights = contribution.tensors[HEAD_WEIGHTS].double()
    means = {}
    for name, value in contribution.tensors.items():
        if name.startswith(DELTA):
            parameter = name.removeprefix(DELTA)
            weight = float(weights[head_of(parameter)])
            if weight > 0:
                means[parameter] = value.double() / weight
    return means
