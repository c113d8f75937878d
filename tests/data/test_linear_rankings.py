"""The linear ranking world: items that texts spell, Plackett-Luce choices, and populations that pairs cannot tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from fedalign.data.linear_rankings import read_item, spelt
from fedalign.data.rankings import RankingSet
from fedalign.errors import UserError
from fedalign.rng import Streams

Make = Callable[..., Any]


def draw(make: Make, seed: int = 0, **changes: Any) -> RankingSet:
    result: RankingSet = make("data/linear_rankings", **changes).load(Streams(seed))
    return result


def axis(world: RankingSet) -> list[dict[float, int]]:
    """Tier of each item of an axis, for every ranking."""
    return [
        {read_item(text)[0]: tier for text, tier in zip(ranking.responses, ranking.tiers, strict=True)}
        for ranking in world.rankings
    ]


def chance(hits: int, n: int, p: float) -> bool:
    return bool(binomtest(hits, n, p).pvalue > 1e-3)


def test_the_default_world(make: Make) -> None:
    world = draw(make)
    assert len(world.rankings) == 300 * 16 and world.dropped == {}
    assert Counter(world.types.values()) == {"type-1": 150, "type-2": 150}
    assert {tuple(sorted(ranking.tiers)) for ranking in world.rankings} == {(0, 1)}
    assert {ranking.group for ranking in world.rankings} == {"type-1", "type-2"}


def test_vectors_are_what_responses_spell(make: Make) -> None:
    source = make("data/linear_rankings", annotators=30, responses=3, form="full")
    rankings = source.load(Streams(0)).rankings
    vectors = source.vectors(rankings)
    assert len(vectors) == len(rankings) and all(vector.shape == (3, 4) for vector in vectors)
    assert vectors[0].dtype == torch.float32
    assert [spelt(item) for item in vectors[5].tolist()] == list(rankings[5].responses)
    items = torch.cat(list(vectors))
    assert items.mean(0).abs().max() < 0.1 and (items.T.cov() - torch.eye(4)).abs().max() < 0.1


def test_weights_are_directions_of_the_right_length(make: Make) -> None:
    weights = make("data/linear_rankings", types=5, scale=3.0, dimension=7).weights(Streams(0))
    assert weights.shape == (5, 7)
    np.testing.assert_allclose(np.linalg.norm(weights, axis=1), 3.0)
    assert np.linalg.matrix_rank(weights) == 5


def test_choices_follow_the_logistic_law_of_the_true_weights(make: Make) -> None:
    source = make("data/linear_rankings", annotators=200)
    rankings, weights = source.load(Streams(0)).rankings, source.weights(Streams(0))
    utilities = np.array(
        [
            vector.double().numpy() @ weights[int(ranking.group[-1]) - 1]
            for ranking, vector in zip(rankings, source.vectors(rankings), strict=True)
        ]
    )
    probability = 1.0 / (1.0 + np.exp(utilities[:, 1] - utilities[:, 0]))
    won = np.array([ranking.tiers[0] == 0 for ranking in rankings])
    for low in np.linspace(0.0, 0.9, 10):
        within = (probability >= low) & (probability < low + 0.1)
        error = (won[within] - probability[within]).sum() / np.sqrt((probability * (1 - probability))[within].sum())
        assert abs(error) < 3.5, low


@pytest.mark.parametrize(("train_judgments", "expected"), [(4, 0.897), (8, 0.966)])
def test_true_weights_tell_types_apart_as_often_as_in_the_study(
    make: Make, train_judgments: int, expected: float
) -> None:
    found = []
    for seed in range(12):
        source = make("data/linear_rankings", annotators=100, train_judgments=train_judgments, test_judgments=0)
        world, weights = source.load(Streams(seed)), source.weights(Streams(seed))
        score: dict[str, float] = dict.fromkeys(world.types, 0.0)
        for ranking, vector in zip(world.rankings, source.vectors(world.rankings), strict=True):
            best, last = (vector[ranking.tiers.index(tier)].double().numpy() for tier in (0, 1))
            first, second = weights @ (best - last)
            score[ranking.annotator or ""] += np.logaddexp(0.0, -second) - np.logaddexp(0.0, -first)
        found.append(np.mean([(score[name] > 0.0) == (kind == "type-1") for name, kind in world.types.items()]))
    # Directions are random, so that worlds differ; the mean of twelve has a standard error of about 0.02.
    assert abs(np.mean(found) - expected) < 0.05


@pytest.mark.parametrize(("population", "types"), [("mirrored", 2), ("indifferent", 1)])
def test_every_pair_is_won_half_of_the_time(make: Make, population: str, types: int) -> None:
    judged = axis(draw(make, population=population, types=types, scale=3.0))
    for higher, lower in ((1.0, 0.0), (0.0, -1.0), (1.0, -1.0)):
        both = [tiers[higher] < tiers[lower] for tiers in judged if {higher, lower} <= set(tiers)]
        assert len(both) > 1000 and chance(sum(both), len(both), 0.5)


@pytest.mark.parametrize(
    ("population", "types", "expected"), [("mirrored", 2, 1.0 / (1.0 + 2.0 * np.cosh(3.0))), ("indifferent", 1, 1 / 3)]
)
def test_the_best_of_three_tells_the_populations_apart(
    make: Make, population: str, types: int, expected: float
) -> None:
    judged = axis(draw(make, population=population, types=types, scale=3.0, responses=3, form="best"))
    assert all(set(tiers) == {1.0, 0.0, -1.0} for tiers in judged)
    assert chance(sum(tiers[0.0] == 0 for tiers in judged), len(judged), float(expected))


def test_mirrored_types_want_opposite_ends(make: Make) -> None:
    world = draw(make, population="mirrored", scale=2.0, responses=3, form="full", test_exact=True)
    for ranking, tiers in zip(world.rankings, axis(world), strict=True):
        if ranking.split == "test":
            assert tiers == ({1.0: 0, 0.0: 1, -1.0: 2} if ranking.group == "type-1" else {1.0: 2, 0.0: 1, -1.0: 0})


def test_nobody_indifferent_has_an_exact_preference(make: Make) -> None:
    world = draw(make, population="indifferent", types=1, test_exact=True, annotators=10)
    assert world.dropped == {"all_tied": 80} and len(world.rankings) == 80


def test_the_probe(make: Make) -> None:
    world = draw(make, probe_menus=5, annotators=40)
    assert [len(menu.responses) for menu in world.probe] == [3] * 5
    assert set(world.answers) == set(world.types)
    assert all(sorted(tiers) == [0, 1, 2] for answers in world.answers.values() for tiers in answers)
    assert draw(make, annotators=40).rankings == world.rankings
    axes = draw(make, probe_menus=3, population="mirrored", annotators=4).probe
    assert all({read_item(text)[0] for text in menu.responses} == {1.0, 0.0, -1.0} for menu in axes)


def test_shares(make: Make) -> None:
    world = draw(make, types=3, shares=[2, 1, 1], annotators=40, train_judgments=1, test_judgments=0)
    assert Counter(world.types.values()) == {"type-1": 20, "type-2": 10, "type-3": 10}


def test_seeds_and_prefixes(make: Make) -> None:
    small: dict[str, Any] = {"annotators": 3}
    assert draw(make, 1, **small) == draw(make, 1, **small) != draw(make, 2, **small)
    assert draw(make, 1, world_seed=5, **small) == draw(make, 2, world_seed=5, **small) == draw(make, 5, **small)
    few = draw(make, **small)
    assert few.rankings == draw(make, annotators=6).rankings[: len(few.rankings)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"population": "mirrored", "types": 3}, r"data\.types=3: population mirrored has types=2"),
        ({"population": "indifferent"}, r"data\.types=2: population indifferent has types=1"),
        ({"shares": [1.0, 1.0, 1.0]}, r"data\.shares has 3 numbers; give data\.types=2"),
        ({"population": "mirrored", "responses": 4, "form": "full"}, r"data\.responses=4: population mirrored has 3"),
        ({"responses": 3}, r"data\.form=pair"),
        ({"shares": [1.0, 0.0]}, r"data\.shares="),
    ],
)
def test_settings_that_do_not_fit(make: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        draw(make, **changes)
