"""The floor: every option equally likely, nothing learnt, nothing sent."""

from __future__ import annotations

import pytest
import torch
from scipy.spatial.distance import jensenshannon

from fedalign.contribution import Contribution
from fedalign.data.schema import Role
from fedalign.methods.survey import Evaluation
from fedalign.methods.uniform import UniformPhase
from fedalign.metrics.record import decode
from fedalign.rng import Streams

from .surveys import answers, group, shard

SIZES = [2, 5, 3, 4]


def test_every_option_has_the_same_share() -> None:
    phase = UniformPhase(Evaluation(1, 1, True))
    client = shard(group("g", SIZES, 0))
    shares = phase.predict({}, client, client.groups[0], torch.tensor([0]), torch.tensor([3, 1]))
    assert shares.tolist() == [0.25] * 4 + [0.2] * 5


def test_its_score_does_not_depend_on_the_context() -> None:
    judgments = group("g", SIZES, 0)
    phase = UniformPhase(Evaluation(6, 3, True))
    (item,) = decode(phase.evaluate({}, shard(judgments, role=Role.UNSEEN), Streams(0)).scalars)
    scores = [1 - jensenshannon([1 / len(row)] * len(row), row) for row in answers(judgments).values()]
    assert item.n == 6
    assert min(scores) - 1e-6 <= item.total / item.n <= max(scores) + 1e-6
    assert item.total / item.n == pytest.approx(sum(scores) / 4, abs=0.3)


def test_nothing_is_learnt_and_nothing_is_sent() -> None:
    phase = UniformPhase(Evaluation(1, 1, True))
    assert phase.rounds == 0
    assert phase.initial(Streams(0), {}) == {}
    assert phase.local({}, shard(group("g", SIZES, 0)), Streams(0), {}) == Contribution()
