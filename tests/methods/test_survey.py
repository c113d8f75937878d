"""How survey predictors are scored: layout of points, fixed contexts, and scores that scipy agrees with."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from torch import Tensor

from fedalign.contribution import Contribution, State
from fedalign.data.schema import GroupJudgments, Role, SurveyShard
from fedalign.errors import UserError
from fedalign.methods.base import Artefacts, Memory
from fedalign.methods.survey import Evaluation, SurveyPhase, points_of
from fedalign.metrics.record import MetricSum, decode
from fedalign.rng import Streams

from .surveys import answers, group, shard


class FirstContext(SurveyPhase):
    """Predicts nearly everything for the first option, and keeps what it was asked."""

    name = "toy"
    rounds = 0

    def __init__(self, draws: int = 2, context: int = 3, train: bool = True) -> None:
        self.evaluation = Evaluation(draws, context, train)
        self.asked: list[tuple[list[int], list[int]]] = []

    def initial(self, streams: Streams, artefacts: Artefacts) -> State:
        return {}

    def local(self, state: State, shard: SurveyShard, streams: Streams, memory: Memory) -> Contribution:
        return Contribution()

    def predict(
        self, state: State, shard: SurveyShard, judgments: GroupJudgments, context: Tensor, target: Tensor
    ) -> Tensor:
        self.asked.append((context.tolist(), target.tolist()))
        return torch.cat([toy_prediction(judgments, q) for q in target.tolist()])


def toy_prediction(judgments: GroupJudgments, question: int) -> Tensor:
    size = int(judgments.offsets[question + 1] - judgments.offsets[question])
    shares = torch.full((size,), 0.1 / size)
    shares[0] += 0.9
    return shares


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    chosen=st.lists(st.integers(0, 5), max_size=6),
)
def test_points_lie_question_by_question_in_the_order_asked(sizes: list[int], chosen: list[int]) -> None:
    judgments = group("g", sizes, 0)
    questions = [q % len(sizes) for q in chosen]
    points = points_of(judgments, torch.tensor(questions, dtype=torch.int64))
    starts = [0, *itertools.accumulate(sizes)]
    expected = [(starts[q] + k, place) for place, q in enumerate(questions) for k in range(sizes[q])]
    assert list(zip(points.index.tolist(), points.segments.tolist(), strict=True)) == expected
    assert points.questions == len(questions)


SIZES = [2, 3, 4, 2, 5, 3, 2, 4]


@pytest.mark.parametrize(
    ("role", "train", "populations"),
    [
        (Role.TRAIN, True, {"test": [6, 7], "train": None}),
        (Role.TRAIN, False, {"test": [6, 7]}),
        (Role.UNSEEN, True, {"unseen": None}),
    ],
)
def test_scores_are_one_minus_scipy_s_distance(
    role: Role, train: bool, populations: dict[str, list[int] | None]
) -> None:
    judgments = group("g", SIZES, 4, test=2 if role is Role.TRAIN else 0)
    phase = FirstContext(train=train)
    sums = {s.name: s for s in decode(phase.evaluate({}, shard(judgments, role=role), Streams(1)).scalars)}
    assert sums.keys() == {f"{population}/alignment_score" for population in populations}
    known = answers(judgments)
    for place, (population, targets) in enumerate(populations.items()):
        asked = [target for _, target in phase.asked[place :: len(populations)]]
        assert len(asked) == 2
        if targets is not None:
            assert asked == [targets, targets]
        scores = [
            1 - jensenshannon(toy_prediction(judgments, q).numpy(), known[f"q{q}"]) for target in asked for q in target
        ]
        item = sums[f"{population}/alignment_score"]
        assert item.group == "g"
        assert item.n == len(scores)
        assert item.total == pytest.approx(sum(scores), abs=1e-5)


def test_contexts_depend_on_seed_group_and_draw_alone() -> None:
    judgments = group("g", SIZES, 4)
    asked = []
    for streams in (Streams(1), Streams(1, "other", 9, "client"), Streams(2)):
        phase = FirstContext(draws=3)
        phase.evaluate({}, shard(judgments, role=Role.UNSEEN), streams)
        asked.append(phase.asked)
    assert asked[0] == asked[1]
    assert asked[0] != asked[2]
    assert len({tuple(context) for context, _ in asked[0]}) == 3
    phase = FirstContext(draws=3)
    phase.evaluate({}, shard(dataclasses.replace(judgments, group="h"), role=Role.UNSEEN), Streams(1))
    assert phase.asked != asked[0]


def test_a_context_has_the_size_that_was_asked_for_and_targets_are_the_rest() -> None:
    phase = FirstContext(draws=4, context=5)
    phase.evaluate({}, shard(group("g", SIZES, 4), role=Role.UNSEEN), Streams(0))
    for context, target in phase.asked:
        assert len(context) == 5
        assert sorted([*context, *target]) == list(range(8))


def test_every_group_of_a_client_is_scored() -> None:
    client = shard(group("g", SIZES, 4, test=2), group("h", SIZES, 5, test=1), client="both")
    sums = decode(FirstContext(draws=1).evaluate({}, client, Streams(0)).scalars)
    assert [(s.name, s.group, s.n) for s in sums] == [
        ("test/alignment_score", "g", 2),
        ("test/alignment_score", "h", 1),
        ("train/alignment_score", "g", 3),
        ("train/alignment_score", "h", 4),
    ]


def test_a_training_group_too_small_for_the_context_is_scored_on_its_test_questions_alone() -> None:
    client = shard(group("g", SIZES, 4, test=2))
    sums = decode(FirstContext(draws=1, context=6).evaluate({}, client, Streams(0)).scalars)
    assert [s.name for s in sums] == ["test/alignment_score"]


def test_an_unseen_group_must_leave_something_to_predict() -> None:
    client = shard(group("Malta", SIZES, 4), role=Role.UNSEEN)
    FirstContext(context=7).check(client)
    with pytest.raises(UserError, match=r"context_questions=8: group 'Malta' has 8 questions, fewer than context \+ 1"):
        FirstContext(context=8).check(client)


def test_a_training_group_needs_one_question_to_see_and_one_to_predict() -> None:
    phase = FirstContext(context=8)
    phase.check(shard(group("g", [2, 2, 2], 0, test=1)))
    with pytest.raises(UserError, match="client 'both': group 'h' has 1 training questions"):
        phase.check(shard(group("g", SIZES, 0), group("h", [2, 2], 0, test=1), client="both"))


def test_values_over_groups() -> None:
    scores = {"g": (4.0, 5.0), "h": (1.5, 3.0), "i": (9.0, 10.0)}
    sums = [MetricSum("unseen/alignment_score", name, *pair) for name, pair in scores.items()]
    values = FirstContext().summarise([*sums, MetricSum("train/loss", "g", 3.0, 2.0)], {})
    means = np.array([0.8, 0.5, 0.9])
    cov = means.std() / means.mean()
    assert values == pytest.approx(
        {
            "unseen/alignment_score": means.mean(),
            "unseen/alignment_score_worst": 0.5,
            "unseen/alignment_gap": 0.4,
            "unseen/alignment_cov": cov,
            "unseen/fairness_index": 1 / (1 + cov**2),
            "unseen/alignment_score_micro": 14.5 / 18,
            "train/loss": 1.5,
        }
    )
