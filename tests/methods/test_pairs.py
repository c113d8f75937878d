"""What all pair predictors share: batches in random order, disjoint draws, and accuracy that adds up."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedalign.contribution import Contribution, State, total
from fedalign.data.pairs import Judgments, PairShard, Role
from fedalign.errors import UserError
from fedalign.methods.base import Artefacts, Memory
from fedalign.methods.pairs import PairEvaluation, PairPhase, Predictor, batch_of, draw_disjoint
from fedalign.metrics.record import MetricSum, decode
from fedalign.rng import Streams

from .judgments import judgments, linear_world, random_person, shard


class FirstFeature(PairPhase):
    """Prefers the response with the higher first feature, whoever asks."""

    name = "first_feature"
    rounds = 0

    def __init__(self, context: int = 3, draws: int = 1, train: bool = True) -> None:
        self.evaluation = PairEvaluation(context, draws, train)
        self.shows: list[tuple[str, list[int]]] = []

    def initial(self, streams: Streams, artefacts: Artefacts) -> State:
        return {}

    def local(self, state: State, shard: PairShard, streams: Streams, memory: Memory) -> Contribution:
        return Contribution()

    def predictors(
        self, state: State, shard: PairShard, judgments: Judgments, context: Tensor, streams: Streams
    ) -> Mapping[str, Predictor]:
        self.shows.append((judgments.person, context.tolist()))
        return {
            "accuracy": lambda first, second: first[..., 0] - second[..., 0],
            "accuracy_turned": lambda first, second: second[..., 0] - first[..., 0],
        }


@given(seed=st.integers(0, 999), count=st.integers(1, 8))
def test_a_batch_says_the_same_in_whatever_order(seed: int, count: int) -> None:
    person = dataclasses.replace(random_person("ann", count, seed), tie=torch.arange(count) % 3 == 1)
    index = torch.arange(count)[None]
    batch = batch_of(person, index, torch.Generator().manual_seed(seed))
    for place in range(count):
        chosen, rejected = person.features[place]
        first, second = batch.first[0, place], batch.second[0, place]
        said = float(batch.preferred[0, place])
        if person.tie[place]:
            assert said == 0.5
            assert {tuple(first.tolist()), tuple(second.tolist())} == {tuple(chosen.tolist()), tuple(rejected.tolist())}
        else:
            assert torch.equal(first if said else second, chosen)
            assert torch.equal(second if said else first, rejected)


def test_a_batch_is_shuffled_anew_at_every_draw() -> None:
    person, index = random_person("ann", 200, 0), torch.arange(200)[None]
    generator = torch.Generator().manual_seed(0)
    once, again = (batch_of(person, index, generator).preferred for _ in range(2))
    assert not torch.equal(once, again)
    assert 70 < float(once.sum()) < 130
    assert torch.equal(batch_of(person, index, None).preferred, torch.ones(1, 200))


@given(
    seed=st.integers(0, 999),
    episodes=st.integers(1, 5),
    context=st.integers(1, 6),
    target=st.integers(0, 6),
    extra=st.integers(0, 6),
)
def test_no_judgment_is_drawn_twice(seed: int, episodes: int, context: int, target: int, extra: int) -> None:
    available = torch.arange(100, 100 + context + target + extra)
    drawn = draw_disjoint(available, episodes, context, target, torch.Generator().manual_seed(seed))
    assert drawn.shape == (episodes, context + target)
    for row in drawn.tolist():
        assert len(set(row)) == context + target
        assert set(row) <= set(available.tolist())


def test_every_judgment_is_a_context_as_often_as_any_other() -> None:
    drawn = draw_disjoint(torch.arange(6), 6000, 2, 1, torch.Generator().manual_seed(0))
    counts = torch.bincount(drawn[:, :2].flatten(), minlength=6).tolist()
    assert all(abs(count - 2000) < 5 * (6000 * 2 / 9) ** 0.5 for count in counts)


def test_accuracy_counts_by_category_and_conflict() -> None:
    features = torch.zeros(6, 2, 4)
    # Right, right, wrong, a tie, right, undecided.
    features[:, 0, 0] = torch.tensor([1.0, 2.0, -1.0, 5.0, 3.0, 0.0])
    person = judgments(
        "ann", features, group="a", test=6, categories=["a", "b", "a", "a", "b", "a"],
        tie=torch.tensor([False, False, False, True, False, False]),
        conflict=torch.tensor([True, False, True, True, False, False]),
    )  # fmt: skip
    sums = decode(FirstFeature().evaluate({}, shard(person), Streams(0)).scalars)
    assert [item for item in sums if item.name.startswith("test/accuracy") and "turned" not in item.name] == [
        MetricSum("test/accuracy", "a", 1.5, 3.0),
        MetricSum("test/accuracy", "b", 2.0, 2.0),
        MetricSum("test/accuracy_conflict", "a", 1.0, 2.0),
    ]
    turned = {item.group: item for item in sums if item.name == "test/accuracy_turned"}
    assert (turned["a"].total, turned["b"].total) == (1.5, 0.0)


class Leaning(FirstFeature):
    """Prefers whatever is shown first."""

    def predictors(
        self, state: State, shard: PairShard, judgments: Judgments, context: Tensor, streams: Streams
    ) -> Mapping[str, Predictor]:
        return {"accuracy": lambda first, second: torch.ones(first.shape[:2])}


def test_leaning_to_a_place_is_worth_a_coin() -> None:
    """Judgments are stored with the chosen response first; no predictor may profit from that."""
    found = decode(Leaning().evaluate({}, shard(random_person("ann", 600, 0, test=400)), Streams(0)).scalars)
    for item in found:
        assert abs(item.total / item.n - 0.5) < 5 * 0.5 / item.n**0.5
    again = decode(Leaning().evaluate({}, shard(random_person("ann", 600, 0, test=400)), Streams(0, "x", 9)).scalars)
    assert again == found


def test_values_over_groups_are_means_and_the_worst_group() -> None:
    sums = [
        MetricSum("test/accuracy", "a", 3.0, 4.0),
        MetricSum("test/accuracy", "b", 1.0, 4.0),
        MetricSum("unseen/accuracy", "a", 4.0, 4.0),
        MetricSum("test/accuracy_conflict", "a", 0.0, 2.0),
    ]
    assert FirstFeature().summarise(sums, {}) == {
        "test/accuracy": 0.5,
        "test/accuracy_worst": 0.25,
        "unseen/accuracy": 1.0,
        "unseen/accuracy_worst": 1.0,
        "test/accuracy_conflict": 0.0,
    }


@given(train=st.integers(2, 12), test=st.integers(0, 4), size=st.integers(1, 14), draws=st.integers(1, 3))
def test_contexts_and_targets_of_an_evaluation_are_disjoint(train: int, test: int, size: int, draws: int) -> None:
    person = random_person("ann", train + test, 0, test)
    drawn = list(FirstFeature(size, draws)._draws(person, Role.TRAIN, Streams(1)))
    assert [population for population, *_ in drawn] == (["test"] * (test > 0) + ["train"]) * draws
    for population, context, target in drawn:
        assert len(context)
        assert len(target)
        assert not set(context.tolist()) & set(target.tolist())
        assert set(context.tolist()) <= set(person.train.tolist())
        if population == "test":
            assert len(context) == min(size, train)
            assert set(target.tolist()) == set(person.test.tolist())
        else:
            assert set(context.tolist()) | set(target.tolist()) == set(person.train.tolist())
            assert len(target) >= train / 3


def test_a_stranger_is_only_scored_on_held_out_judgments() -> None:
    person = random_person("ann", 9, 0, test=3)
    drawn = list(FirstFeature()._draws(person, Role.UNSEEN, Streams(1)))
    assert [population for population, *_ in drawn] == ["unseen"]
    names = {population for population, *_ in FirstFeature(train=False)._draws(person, Role.TRAIN, Streams(1))}
    assert names == {"test"}


def test_evaluation_contexts_depend_on_seed_person_and_draw_alone() -> None:
    people = linear_world(3, 8, 3)

    def contexts(*places: int, streams: Streams) -> list[tuple[str, list[int]]]:
        phase = FirstFeature(draws=2)
        for place in places:
            phase.evaluate({}, people[place], streams)
        return sorted(phase.shows)

    known = contexts(0, 1, 2, streams=Streams(4))
    assert contexts(2, 0, 1, streams=Streams(4, "elsewhere", 7, "client")) == known
    assert contexts(0, 1, 2, streams=Streams(5)) != known
    assert len({tuple(context) for _, context in known}) > len(people)


def test_evaluation_sums_do_not_depend_on_how_people_are_spread_over_clients() -> None:
    world = linear_world(4, 6, 3)
    everybody = shard(*(p for each in world for p in each.people), client="silo")
    phase = FirstFeature()
    apart = total(phase.evaluate({}, each, Streams(0)) for each in world).scalars
    assert dict(phase.evaluate({}, everybody, Streams(0)).scalars) == dict(apart)


def test_somebody_with_a_single_training_judgment_is_refused() -> None:
    world = shard(random_person("ann", 5, 0), random_person("ben", 4, 1, test=3), client="clinic")
    with pytest.raises(UserError, match=r"client 'clinic': 'ben' has 1 training judgments; .*partition\.min_train"):
        FirstFeature().check(world)
    FirstFeature().check(shard(random_person("ann", 2, 0)))
