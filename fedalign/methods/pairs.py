"""What all pair predictors share: episodes of context and target, and accuracy on judgments that were held out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedalign.contribution import Contribution, State
from fedalign.data.federated import Kind
from fedalign.data.pairs import Judgments, PairShard, Role
from fedalign.errors import UserError
from fedalign.methods.base import Method, Phase
from fedalign.metrics.record import MetricSum, encode
from fedalign.metrics.reward import pair_accuracy
from fedalign.rng import Streams

ACCURACY = "accuracy"

Predictor = Callable[[Tensor, Tensor], Tensor]
"""For one person, as far as its context tells: features (1, T, dim) of A and of B to log odds of A, shape (1, T)."""


@dataclass(frozen=True)
class PairEvaluation:
    """How a pair predictor is scored; the ``evaluation`` block of a method.

    Parameters
    ----------
    context : int
        Judgments of a person that a predictor sees at most; all but one where the person has fewer.
    draws : int
        Random contexts a person. They depend on the seed, the person and the draw alone, so that every arm, round
        and engine of one seed is scored on the same contexts.
    train : bool
        Also score training people on their own training judgments (context and target disjoint).
    """

    context: Annotated[int, Field(ge=1)]
    draws: Annotated[int, Field(ge=1)]
    train: bool


@dataclass(frozen=True)
class Batch:
    """Judgments of E episodes, T each, as a network reads them.

    Parameters
    ----------
    first, second : float Tensor, shape (E, T, features)
        Responses A and B, in an order drawn anew for every batch.
    preferred : float Tensor, shape (E, T)
        1 if A was preferred, 0 if B, 1/2 for a tie.
    """

    first: Tensor
    second: Tensor
    preferred: Tensor


def batch_of(judgments: Judgments, index: Tensor, generator: torch.Generator | None) -> Batch:
    """Return the judgments at ``index`` (int64, shape (E, T)); A and B are put in random order.

    Parameters
    ----------
    judgments : Judgments
    index : int64 Tensor, shape (E, T)
    generator : torch.Generator or None
        None leaves the chosen response first.
    """
    pairs = judgments.features[index]
    tie = judgments.tie[index]
    if generator is None:
        swap = torch.zeros(index.shape, dtype=torch.bool)
    else:
        swap = torch.rand(index.shape, generator=generator) < 0.5
    mask = swap[..., None]
    first = torch.where(mask, pairs[..., 1, :], pairs[..., 0, :])
    second = torch.where(mask, pairs[..., 0, :], pairs[..., 1, :])
    return Batch(first, second, torch.where(tie, 0.5, (~swap).float()))


def draw_disjoint(available: Tensor, episodes: int, context: int, target: int, generator: torch.Generator) -> Tensor:
    """Return indices of E random contexts and targets without a judgment in common.

    Parameters
    ----------
    available : int64 Tensor, shape (J,)
        ``J >= context + target``.

    Returns
    -------
    int64 Tensor, shape (E, context + target)
        The context comes first.
    """
    order = torch.rand(episodes, len(available), generator=generator).argsort(1)
    return available[order[:, : context + target]]


class PairPhase(Phase[PairShard]):
    """A phase whose state predicts which of two responses a person prefers."""

    evaluation: PairEvaluation

    def check(self, shard: PairShard) -> None:
        """Refuse a person without both a judgment to see and one to predict.

        Raises
        ------
        UserError
            Naming the client and the person.
        """
        for judgments in shard.people:
            if len(judgments.train) < 2:
                raise UserError(
                    f"client {shard.client!r}: {judgments.person!r} has {len(judgments.train)} training judgments; one "
                    "to see and one to predict are needed: raise partition.min_train"
                )

    def users(self, shard: PairShard) -> Sequence[str]:
        """Return the shard's people."""
        return [judgments.person for judgments in shard.people]

    @abstractmethod
    def predictors(
        self, state: State, shard: PairShard, judgments: Judgments, context: Tensor, streams: Streams
    ) -> Mapping[str, Predictor]:
        """Return what is to be scored, by the name of its metric; ``accuracy`` is the method's own prediction.

        Parameters
        ----------
        state : State
        shard : PairShard
        judgments : Judgments
            Only those at ``context`` may be looked at.
        context : int64 Tensor, shape (C,)
        streams : Streams
        """

    def evaluate(self, state: State, shard: PairShard, streams: Streams) -> Contribution:
        """Return accuracy sums of every population that the shard holds, by category."""
        sums: list[MetricSum] = []
        with torch.inference_mode():
            self.load(state)
            for judgments in shard.people:
                # Were the chosen response always first, whatever leans to a place would be right for no reason.
                order = Streams(streams.seed).torch(f"evaluation/order/{judgments.person}")
                for population, context, target in self._draws(judgments, shard.role, streams):
                    batch = batch_of(judgments, target[None], order)
                    for name, predictor in self.predictors(state, shard, judgments, context, streams).items():
                        logits = (2 * batch.preferred[0] - 1) * predictor(batch.first, batch.second)[0]
                        sums += _accuracies(f"{population}/{name}", judgments, target, logits)
        return Contribution(scalars=encode(sums))

    def load(self, state: State) -> None:
        """Put the state into the workspace network, before its predictors are asked for."""

    def shown(self, order: Tensor, population: str) -> Tensor:
        """Return the context of a draw whose targets are held-out judgments.

        Parameters
        ----------
        order : int64 Tensor, shape (J,)
            All of a person's training judgments, in random order.
        population : {"test", "unseen"}
        """
        return order[: self.evaluation.context]

    def _draws(self, judgments: Judgments, role: Role, streams: Streams) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Yield (population, context, target) of every draw."""
        size = self.evaluation.context
        for draw in range(self.evaluation.draws):
            generator = Streams(streams.seed).torch(f"evaluation/{judgments.person}/{draw}")
            order = judgments.train[torch.randperm(len(judgments.train), generator=generator)]
            if len(judgments.test):
                population = "unseen" if role is Role.UNSEEN else "test"
                yield population, self.shown(order, population), judgments.test
            if self.evaluation.train and role is Role.TRAIN:
                # At least a third of the judgments are left to predict, however few there are.
                seen = min(size, 2 * len(order) // 3)
                yield "train", order[:seen], order[seen:]

    def summarise(self, sums: Sequence[MetricSum], tensors: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the mean over groups of each metric, and the accuracy of the worst group."""
        values = super().summarise(sums, tensors)
        for population in sorted({item.name.split("/")[0] for item in sums if item.name.endswith(f"/{ACCURACY}")}):
            scored = [item.total / item.n for item in sums if item.name == f"{population}/{ACCURACY}"]
            values[f"{population}/{ACCURACY}_worst"] = min(scored)
        return values


def _accuracies(name: str, judgments: Judgments, target: Tensor, logits: Tensor) -> Iterator[MetricSum]:
    """Yield accuracy sums by category, over all pairs and over those that groups are known to disagree on."""
    categories = [judgments.categories[i] for i in target.tolist()]
    tie, conflict = judgments.tie[target], judgments.conflict[target]
    for category in sorted(set(categories)):
        own = torch.tensor([c == category for c in categories])
        for suffix, chosen in (("", own), ("_conflict", own & conflict)):
            correct, n = pair_accuracy(logits[chosen], tie[chosen])
            if n:
                yield MetricSum(name + suffix, category, correct, n)


class PairMethod(Method):
    """A method whose phases are pair predictors."""

    kind: ClassVar[Kind] = Kind.PAIRS

    @property
    def headline(self) -> str:
        """Accuracy on the training people's held-out judgments."""
        return f"test/{ACCURACY}"

    @property
    def selection(self) -> str:
        """Accuracy of the training people on their own training judgments."""
        return f"train/{ACCURACY}"
