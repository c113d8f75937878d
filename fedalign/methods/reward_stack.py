"""The loss of reward heads on many clients side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from fedalign.data.pairs import Judgments
from fedalign.methods.episodes import EpisodePlan, Pick, join_batches
from fedalign.methods.membership import Membership
from fedalign.methods.pair_stack import drop, stack_batches
from fedalign.methods.pairs import Batch, batch_of
from fedalign.models.reward import RewardHead
from fedalign.objectives.preference import preference_nll


@dataclass(frozen=True)
class Learner:
    """One client in training.

    Parameters
    ----------
    people : sequence of Judgments
    members : mapping from person to Membership
    generator, dropout : torch.Generator
        The client's own, of episodes and of what bodies leave out.
    """

    people: Sequence[Judgments]
    members: Mapping[str, Membership]
    generator: torch.Generator
    dropout: torch.Generator


@dataclass(frozen=True)
class _Step:
    """What one client draws for a step: whose judgments, and the batch as each head reads it."""

    picks: list[Pick]
    batches: list[Batch]


def stacked_losses(network: nn.Module, clients: Sequence[Learner], episodes: EpisodePlan) -> Tensor:
    """Return each client's mean loss over the judgments of a step, shape (clients,).

    Parameters
    ----------
    network : nn.Module
        Copies of :class:`fedalign.models.reward.RewardHeads` side by side, one a client.
    clients : sequence of Learner
    episodes : EpisodePlan
    """
    heads = [cast(RewardHead, head) for head in cast(nn.ModuleList, network.heads)]
    steps = [_draw(client, episodes, heads) for client in clients]
    inputs = [stack_batches([step.batches[k] for step in steps]) for k in range(len(heads))]
    logits = torch.stack([head(read.first, read.second) for head, read in zip(heads, inputs, strict=True)])
    weights = _fixed_weights(clients, steps, logits)
    if weights is not None:
        losses = weights * preference_nll(logits, inputs[0].preferred.expand_as(logits))
        return inputs[0].mean(losses.sum(0))
    return torch.stack(
        [
            _loss(client, step, logits[:, place], inputs[0].preferred[place])
            for place, (client, step) in enumerate(zip(clients, steps, strict=True))
        ]
    )


def _draw(client: Learner, episodes: EpisodePlan, heads: Sequence[RewardHead]) -> _Step:
    picks: list[Pick] = []
    reads: list[list[Batch]] = [[] for _ in heads]
    for pick in episodes.picks(client.people, client.generator):
        batch = batch_of(pick.judgments, pick.index, client.generator)
        picks.append(pick)
        for read, head in zip(reads, heads, strict=True):
            read.append(drop(batch, head.body.input_dropout, client.dropout))
    return _Step(picks, [join_batches(read) for read in reads])


def _fixed_weights(clients: Sequence[Learner], steps: Sequence[_Step], logits: Tensor) -> Tensor | None:
    """Return the weights of all losses, shape of ``logits``; None if somebody's depend on what is trained."""
    weights = torch.zeros(logits.shape)
    for place, (client, step) in enumerate(zip(clients, steps, strict=True)):
        for pick, rows in _rows(step):
            own = client.members[pick.judgments.person].weights(pick.index)
            if own is None:
                return None
            weights[:, place, rows, : pick.index.shape[1]] = own
    return weights


def _loss(client: Learner, step: _Step, logits: Tensor, preferred: Tensor) -> Tensor:
    """Return one client's mean loss from its own logits, shape (K, E, T)."""
    losses = []
    for pick, rows in _rows(step):
        size = pick.index.shape[1]
        member = client.members[pick.judgments.person]
        losses.append(member.losses(logits[:, rows, :size], preferred[rows, :size], pick.index))
    return torch.cat(losses).mean()


def _rows(step: _Step) -> Iterator[tuple[Pick, slice]]:
    """Yield each person's part of a step, and which episodes it is."""
    start = 0
    for pick in step.picks:
        yield pick, slice(start, start + len(pick.index))
        start += len(pick.index)
