"""Episodes of a group-preference predictor as its network reads them: one alone, or those of many clients at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fedalign.data.schema import GroupJudgments
from fedalign.methods.question_prior import Base
from fedalign.methods.survey import Points, points_of
from fedalign.objectives.gpo_nll import gpo_nll

Reduction = Literal["mean", "sum"]


@dataclass(frozen=True)
class GPOEpisode:
    """Some questions of one group, answered and to be answered.

    Parameters
    ----------
    tokens : float Tensor, shape (points, inputs)
        Context points first, then target points with their shares hidden.
    context : int
        Number of context points.
    target : Points
    shares : float Tensor, shape (target points,)
        What is to be predicted.
    start : float Tensor, shape (target points,), or None
        Log shares that predicted logits are added to; None where there is no question prior.
    """

    tokens: Tensor
    context: int
    target: Points
    shares: Tensor
    start: Tensor | None

    @property
    def points(self) -> int:
        """Number of points, context and target."""
        return len(self.tokens)

    def predict(self, network: nn.Module) -> tuple[Tensor, Tensor]:
        """Return mean logits and log standard deviations of the target points."""
        mean, log_std = network(self.tokens, self.context)
        return mean if self.start is None else self.start + mean, log_std

    def loss(self, network: nn.Module, reduction: Reduction) -> Tensor:
        """Return the negative log-likelihood of the target points given the context, a scalar."""
        mean, log_std = self.predict(network)
        nll = gpo_nll(mean, log_std, self.shares, self.target.segments, self.target.questions)
        return nll.sum() if reduction == "sum" else nll.mean()


def lay_out(judgments: GroupJudgments, base: Base | None, context: Tensor, target: Tensor) -> GPOEpisode:
    """Return an episode of some questions (int64 indices) of a group, on top of its base where there is one."""
    seen, hidden = points_of(judgments, context), points_of(judgments, target)
    index, actual = torch.cat([seen.index, hidden.index]), judgments.shares[hidden.index]
    shares = torch.cat([judgments.shares[seen.index], torch.zeros(len(hidden.index))])
    columns = [judgments.features[index], shares[:, None]]
    if base is None:
        return GPOEpisode(torch.cat(columns, 1), len(seen.index), hidden, actual, None)
    # A context point shows how its share differs from the base, a target point shows no difference.
    columns[1] = torch.where(torch.arange(len(index)) < len(seen.index), shares - base.shares[index], 0)[:, None]
    columns.append(torch.stack([base.shares[index], torch.log1p(base.support[index])], 1))
    return GPOEpisode(torch.cat(columns, 1), len(seen.index), hidden, actual, base.shares[hidden.index].log())


def stacked_losses(network: nn.Module, episodes: Sequence[Sequence[GPOEpisode]], reduction: Reduction) -> Tensor:
    """Return each client's mean loss over its episodes, shape (clients,).

    Parameters
    ----------
    network : nn.Module
        Copies side by side, one a client (:class:`fedalign.models.stacked.Stack`).
    episodes : sequence of sequence of GPOEpisode
        By client; at least one each.
    reduction : {"mean", "sum"}
        Over an episode's target points.
    """
    flat = [episode for own in episodes for episode in own]
    tokens, context, known, wanted = _padded(episodes)
    mean, log_std = (prediction[wanted] for prediction in network(tokens, context, known))
    if flat[0].start is not None:
        mean = torch.cat([episode.start for episode in flat if episode.start is not None]) + mean
    questions = torch.tensor([episode.target.questions for episode in flat])
    sizes = torch.tensor([len(episode.shares) for episode in flat])
    whose = torch.repeat_interleave(torch.arange(len(flat)), sizes)
    segments = torch.cat([episode.target.segments for episode in flat]) + (questions.cumsum(0) - questions)[whose]
    nll = gpo_nll(mean, log_std, torch.cat([e.shares for e in flat]), segments, int(questions.sum()))
    losses = torch.zeros(len(flat)).index_add(0, whose, nll)
    if reduction == "mean":
        losses = losses / sizes
    counts = torch.tensor([len(own) for own in episodes])
    client = torch.repeat_interleave(torch.arange(len(episodes)), counts)
    return torch.zeros(len(episodes)).index_add(0, client, losses) / counts


def _padded(episodes: Sequence[Sequence[GPOEpisode]]) -> tuple[Tensor, int, Tensor, Tensor]:
    """Return tokens (clients, groups, points, inputs), the context's size, and which points of both parts are there."""
    every = [episode for own in episodes for episode in own]
    context, target = max(e.context for e in every), max(len(e.shares) for e in every)
    shape = (len(episodes), max(map(len, episodes)))
    tokens = torch.zeros(*shape, context + target, every[0].tokens.shape[1])
    known, wanted = (torch.zeros(*shape, size, dtype=torch.bool) for size in (context, target))
    # Attention needs something to look at, also where nothing is.
    known[..., 0] = True
    for row, own in enumerate(episodes):
        for place, episode in enumerate(own):
            size = len(episode.shares)
            tokens[row, place, : episode.context] = episode.tokens[: episode.context]
            tokens[row, place, context : context + size] = episode.tokens[episode.context :]
            known[row, place, : episode.context] = True
            wanted[row, place, :size] = True
    return tokens, context, known, wanted
