"""Baseline: the longer response is preferred, or the shorter one; nothing is learnt."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fedalign.contribution import Contribution, State
from fedalign.data.pairs import Judgments, PairShard
from fedalign.methods.base import Artefacts, Memory, Phase, Setting
from fedalign.methods.pairs import PairEvaluation, PairMethod, PairPhase, Predictor
from fedalign.rng import Streams


class LengthPhase(PairPhase):
    """A phase without rounds: lengths are compared."""

    name = "length_rule"
    rounds = 0

    def __init__(self, method: LengthRule) -> None:
        self.method, self.evaluation = method, method.evaluation

    def initial(self, streams: Streams, artefacts: Artefacts) -> State:
        """Return the empty state."""
        return {}

    def local(self, state: State, shard: PairShard, streams: Streams, memory: Memory) -> Contribution:
        """Return nothing: there is nothing to learn."""
        return Contribution()

    def predictors(
        self, state: State, shard: PairShard, judgments: Judgments, context: Tensor, streams: Streams
    ) -> Mapping[str, Predictor]:
        """Return the difference in characters as log odds; equal lengths are even odds."""
        sign = 1.0 if self.method.prefer == "longer" else -1.0
        return {"accuracy": lambda first, second: sign * (first - second)[..., 0]}

    def evaluate(self, state: State, shard: PairShard, streams: Streams) -> Contribution:
        """Return accuracy sums; the rule reads lengths where networks read encoder vectors."""
        people = tuple(dataclasses.replace(j, features=j.lengths[..., None]) for j in shard.people)
        return super().evaluate(state, dataclasses.replace(shard, people=people), streams)


@dataclass(frozen=True)
class LengthRule(PairMethod):
    """Prefer a response for its length.

    Parameters
    ----------
    name : str
    prefer : {"longer", "shorter"}
    evaluation : PairEvaluation
    """

    name: str
    prefer: Literal["longer", "shorter"]
    evaluation: PairEvaluation

    def phases(self, setting: Setting) -> Sequence[Phase[PairShard]]:
        """Return the one phase; it has no rounds."""
        return [LengthPhase(self)]
