"""The floor of every comparison: each option is equally likely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedalign.contribution import Contribution, State
from fedalign.data.schema import GroupJudgments, SurveyShard
from fedalign.methods.base import Artefacts, Memory, Phase, Setting
from fedalign.methods.survey import Evaluation, SurveyMethod, SurveyPhase, points_of
from fedalign.rng import Streams


class UniformPhase(SurveyPhase):
    """A phase without rounds: nothing is learnt, the uniform prediction is scored."""

    name = "uniform"
    rounds = 0

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation = evaluation

    def initial(self, streams: Streams, artefacts: Artefacts) -> State:
        """Return the empty state."""
        return {}

    def local(self, state: State, shard: SurveyShard, streams: Streams, memory: Memory) -> Contribution:
        """Return nothing: there is nothing to learn."""
        return Contribution()

    def predict(
        self, state: State, shard: SurveyShard, judgments: GroupJudgments, context: Tensor, target: Tensor
    ) -> Tensor:
        """Return one over the number of options for every target point."""
        points = points_of(judgments, target)
        sizes = torch.bincount(points.segments, minlength=points.questions)
        return (1 / sizes.double())[points.segments]


@dataclass(frozen=True)
class Uniform(SurveyMethod):
    """Predict every option of a question with the same share."""

    name: str
    evaluation: Evaluation

    def phases(self, setting: Setting) -> Sequence[Phase[SurveyShard]]:
        """Return the one phase; it has no rounds."""
        return [UniformPhase(self.evaluation)]
