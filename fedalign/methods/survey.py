"""What all survey predictors share: drawing contexts, masking targets, and scoring predicted answer distributions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedalign.contribution import Contribution, State
from fedalign.data.federated import Kind
from fedalign.data.schema import GroupJudgments, Role, SurveyShard
from fedalign.errors import UserError
from fedalign.methods.base import Method, Phase
from fedalign.metrics.alignment import jensen_shannon_distance
from fedalign.metrics.fairness import fairness
from fedalign.metrics.record import MetricSum, encode
from fedalign.rng import Streams

ALIGNMENT = "alignment_score"


@dataclass(frozen=True)
class Evaluation:
    """How a survey predictor is scored; the ``evaluation`` block of a method.

    Parameters
    ----------
    draws : int
        Random contexts per group. They depend on the seed, the group and the draw alone, so every arm,
        round and engine of one seed is scored on the same contexts.
    context_questions : int
        Answered questions that a predictor sees.
    train : bool
        Also score training groups on their own training questions (context and targets disjoint).
    """

    draws: Annotated[int, Field(ge=1)]
    context_questions: Annotated[int, Field(ge=1)]
    train: bool


@dataclass(frozen=True)
class Points:
    """Some questions of one group laid out as points.

    Parameters
    ----------
    index : int64 Tensor, shape (points,)
        Rows of the group's features and shares.
    segments : int64 Tensor, shape (points,)
        Which of the chosen questions a point belongs to, from 0.
    questions : int
        Number of chosen questions.
    """

    index: Tensor
    segments: Tensor
    questions: int


def points_of(judgments: GroupJudgments, questions: Tensor) -> Points:
    """Lay out the points of ``questions`` (int64 question indices) in the order given."""
    starts = judgments.offsets[questions]
    sizes = judgments.offsets[questions + 1] - starts
    segments = torch.repeat_interleave(torch.arange(len(questions)), sizes)
    within = torch.arange(len(segments)) - (sizes.cumsum(0) - sizes)[segments]
    return Points(starts[segments] + within, segments, len(questions))


class SurveyPhase(Phase[SurveyShard]):
    """A phase whose state predicts a group's answers from a few of them."""

    evaluation: Evaluation

    def check(self, shard: SurveyShard) -> None:
        """Refuse an unseen group that the context leaves nothing of to predict, and a training group of one question.

        A training group smaller than the context, as mixed partitions make them, is scored on held-out questions only.
        """
        context = self.evaluation.context_questions
        for judgments in shard.groups:
            questions = len(judgments.train)
            if shard.role is Role.UNSEEN and questions <= context:
                raise UserError(
                    f"method.evaluation.context_questions={context}: group {judgments.group!r} has "
                    f"{questions} questions, fewer than context + 1; lower it or leave the group out"
                )
            if questions < 2:
                raise UserError(
                    f"client {shard.client!r}: group {judgments.group!r} has {questions} training questions; "
                    "one to see and one to predict are needed: raise partition.min_questions"
                )

    def users(self, shard: SurveyShard) -> Sequence[str]:
        """Return the shard's groups."""
        return [judgments.group for judgments in shard.groups]

    @abstractmethod
    def predict(
        self, state: State, shard: SurveyShard, judgments: GroupJudgments, context: Tensor, target: Tensor
    ) -> Tensor:
        """Return predicted shares for the points of the ``target`` questions.

        Parameters
        ----------
        state : State
        shard : SurveyShard
            The client; tells whether its training answers are part of what the federation has learnt.
        judgments : GroupJudgments
            One of the shard's groups. Shares of the target questions must not be read.
        context, target : int64 Tensor
            Disjoint question indices.

        Returns
        -------
        Tensor, shape (target points,)
            In the order of ``points_of(judgments, target)``; sums to 1 within each question.
        """

    def evaluate(self, state: State, shard: SurveyShard, streams: Streams) -> Contribution:
        """Return alignment-score sums of every population that the shard holds."""
        sums = []
        for judgments in shard.groups:
            for population, context, target in self._draws(judgments, shard.role, streams):
                scores = self._scores(state, shard, judgments, context, target)
                sums.append(MetricSum(f"{population}/{ALIGNMENT}", judgments.group, *scores))
        return Contribution(scalars=encode(sums))

    def _draws(self, judgments: GroupJudgments, role: Role, streams: Streams) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Yield (population, context, target) of every draw."""
        size = self.evaluation.context_questions
        for draw in range(self.evaluation.draws):
            generator = Streams(streams.seed).torch(f"evaluation/{judgments.group}/{draw}")
            order = judgments.train[torch.randperm(len(judgments.train), generator=generator)]
            context, rest = order[:size], order[size:]
            if role is Role.UNSEEN:
                yield "unseen", context, rest.sort().values
                continue
            if len(judgments.test):
                yield "test", context, judgments.test
            if self.evaluation.train and len(rest):
                yield "train", context, rest.sort().values

    def _scores(
        self, state: State, shard: SurveyShard, judgments: GroupJudgments, context: Tensor, target: Tensor
    ) -> tuple[float, float]:
        """Return the sum of per-question alignment scores and the number of questions."""
        points = points_of(judgments, target)
        with torch.inference_mode():
            predicted = self.predict(state, shard, judgments, context, target)
        actual = judgments.shares[points.index]
        distance = jensen_shannon_distance(predicted, actual, points.segments, points.questions)
        return float((1 - distance).sum()), float(points.questions)

    def summarise(self, sums: Sequence[MetricSum], tensors: Mapping[str, Tensor]) -> dict[str, float]:
        """Return mean, worst, gap, CoV and fairness index over groups, and the mean over questions."""
        values = super().summarise(sums, tensors)
        for population in sorted({item.name.split("/")[0] for item in sums if item.name.endswith(ALIGNMENT)}):
            scored = [item for item in sums if item.name == f"{population}/{ALIGNMENT}"]
            spread = fairness([item.total / item.n for item in scored])
            values[f"{population}/alignment_score_worst"] = spread.worst
            values[f"{population}/alignment_gap"] = spread.gap
            values[f"{population}/alignment_cov"] = spread.cov
            values[f"{population}/fairness_index"] = spread.index
            micro = sum(item.total for item in scored) / sum(item.n for item in scored)
            values[f"{population}/alignment_score_micro"] = micro
        return values


class SurveyMethod(Method):
    """A method whose phases are survey predictors."""

    kind = Kind.SURVEY

    @property
    def headline(self) -> str:
        """Alignment score of the groups that took no part in training."""
        return f"unseen/{ALIGNMENT}"

    @property
    def selection(self) -> str:
        """Alignment score of the training groups on their own training questions."""
        return f"train/{ALIGNMENT}"
