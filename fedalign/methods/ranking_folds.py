"""Which judgments a round trains on, which tell types apart, and which do neither."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedalign.data.rankings import RankingShard
from fedalign.errors import UserError
from fedalign.rng import Streams


@dataclass(frozen=True)
class Folds:
    """How annotators' training judgments are divided; the ``folds`` block of the method.

    Parameters
    ----------
    cross_fit : bool
        Whether each annotator's judgments are halved: one half trains and the other tells its type, turn and turn
        about by round. Otherwise all do both, and types are told by what they have just been fitted to.
    assess : int or None
        Judgments of an annotator that tell its type in a round, at most, drawn anew each round; None takes all.
    validation : float
        Share of an annotator's training judgments that does neither: on these the likelihood is held out.
    """

    cross_fit: bool
    assess: Annotated[int, Field(ge=1)] | None
    validation: Annotated[float, Field(ge=0, lt=1)]

    def check(self, shard: RankingShard) -> None:
        """Refuse annotators with too few judgments to be divided.

        Raises
        ------
        UserError
            Naming the client, the annotator and the fix.
        """
        least = 2 if self.cross_fit else 1
        for number, person in enumerate(shard.people):
            own = int((shard.owner[shard.train] == number).sum())
            left = own - self._held(own)
            if left < least:
                fix = "set method.folds.cross_fit=false, lower method.folds.validation, or raise partition.min_train"
                raise UserError(
                    f"client {shard.client!r}: {person!r} has {own} training judgments, of which {left} are left to "
                    f"train on and to tell its type by; {least} are needed: {fix}"
                )

    def fitting(self, shard: RankingShard, seed: int, round_number: int) -> Tensor:
        """Return the judgments that a round trains on, int64."""
        halves = self._halves(shard, seed)
        chosen = halves >= 0 if not self.cross_fit else halves == round_number % 2
        return chosen.nonzero()[:, 0]

    def assessing(self, shard: RankingShard, seed: int, round_number: int) -> Tensor:
        """Return the judgments that tell types in a round, int64."""
        halves = self._halves(shard, seed)
        chosen = (halves >= 0 if not self.cross_fit else halves == 1 - round_number % 2).nonzero()[:, 0]
        if self.assess is None:
            return chosen
        streams = Streams(seed, "folds", round_number, shard.client)
        return first_of_each(shard, chosen, streams.torch("assess"), lambda _: self.assess or 0)

    def validating(self, shard: RankingShard, seed: int) -> Tensor:
        """Return the judgments that are neither trained on nor tell types, int64."""
        order = Streams(seed, "folds", client=shard.client).torch("validation")
        return first_of_each(shard, shard.train, order, self._held)

    def telling(self, shard: RankingShard, seed: int) -> Tensor:
        """Return all judgments that may tell types when nothing is trained any more, int64."""
        return (self._halves(shard, seed) >= 0).nonzero()[:, 0]

    def _held(self, own: int) -> int:
        return int(self.validation * own)

    def _halves(self, shard: RankingShard, seed: int) -> Tensor:
        """Return 0 or 1 for every judgment that is trained on, by its half, and -1 for the others, shape (N,)."""
        halves = torch.full((len(shard.owner),), -1)
        halves[shard.train] = 0
        halves[self.validating(shard, seed)] = -1
        used = (halves == 0).nonzero()[:, 0]
        order = Streams(seed, "folds", client=shard.client).torch("halves")
        halves[first_of_each(shard, used, order, lambda own: own // 2)] = 1
        return halves


def first_of_each(shard: RankingShard, index: Tensor, generator: torch.Generator, most: Callable[[int], int]) -> Tensor:
    """Return so many judgments of each annotator among ``index``, drawn at random, in ascending order."""
    kept = []
    for number in range(len(shard.people)):
        own = index[shard.owner[index] == number]
        order = torch.randperm(len(own), generator=generator)
        kept.append(own[order[: most(len(own))]])
    return torch.cat(kept).sort().values if kept else index[:0]
