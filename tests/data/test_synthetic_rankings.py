"""The synthetic ranking world: known types, the same wish for quality, lengths that tell nothing."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest, chisquare

from fedalign.data.rankings import Ranking, RankingSet
from fedalign.data.review_texts import filler_score, style_score, tone_score
from fedalign.data.synthetic_rankings import AnnotatorType, true_utility
from fedalign.errors import UserError
from fedalign.rng import Streams

Make = Callable[..., Any]

TYPES = [
    {"name": "praise", "share": 0.55, "tone": 1.0, "style": 0.0},
    {"name": "criticism", "share": 0.25, "tone": -1.0, "style": 0.0},
    {"name": "ornate", "share": 0.2, "tone": 0.0, "style": -1.0},
]
WISHES = {"praise": (1, 0), "criticism": (-1, 0), "ornate": (0, -1)}


def draw(make: Make, seed: int = 0, **changes: Any) -> RankingSet:
    result: RankingSet = make("data/synthetic_rankings", **changes).load(Streams(seed))
    return result


@pytest.fixture(scope="module")
def world(make: Make) -> RankingSet:
    return draw(make)


def look(text: str) -> tuple[int, int, int]:
    """Tone, style and junk of a response, from its words."""
    return int(np.sign(tone_score(text))), int(np.sign(style_score(text))), int(filler_score(text) > 0)


def worth(group: str, text: str, quality_weight: float = 1.0) -> float:
    tone, style, junk = look(text)
    return WISHES[group][0] * tone + WISHES[group][1] * style - quality_weight * junk


def contested(ranking: Ranking) -> bool:
    return len({look(text)[:2] for text in ranking.responses}) > 1


def test_the_default_world(world: RankingSet) -> None:
    assert world.dropped == {}
    own = Counter((ranking.annotator, ranking.split) for ranking in world.rankings)
    assert own == {(f"annotator-{i:03d}", split): 16 for i in range(1, 61) for split in ("train", "test")}
    assert Counter(world.types.values()) == {"praise": 33, "criticism": 15, "ornate": 12}
    for ranking in world.rankings:
        assert ranking.group == world.types[ranking.annotator or ""]
        assert len(ranking.responses) == len(set(ranking.responses)) == len(ranking.tiers) == 3
        assert set(ranking.tiers) == set(range(max(ranking.tiers) + 1)) and max(ranking.tiers) > 0
    prompts = Counter((ranking.annotator, ranking.prompt) for ranking in world.rankings)
    assert set(prompts.values()) == {1}
    signal = sum(map(contested, world.rankings))
    assert binomtest(signal, len(world.rankings), 0.5).pvalue > 1e-3


@pytest.mark.parametrize(("responses", "words"), [(2, 1), (3, 2), (5, 1)])
def test_contested_menus_differ_in_tone_and_style_and_the_others_in_quality(
    make: Make, responses: int, words: int
) -> None:
    world = draw(make, annotators=8, responses=responses, words=words)
    for ranking in world.rankings:
        looks = [look(text) for text in ranking.responses]
        assert all(tone and style for tone, style, _ in looks)
        if contested(ranking):
            assert not any(junk for _, _, junk in looks)
            assert {tone for tone, _, _ in looks} == {style for _, style, _ in looks} == {1, -1}
            assert len(set(looks)) == min(responses, 4)
        else:
            assert {junk for _, _, junk in looks} == {0, 1}


def test_lengths_tell_nothing(make: Make, world: RankingSet) -> None:
    for ranking in [*world.rankings, *draw(make, annotators=5, words=2, responses=4).rankings]:
        assert len({len(text) for text in ranking.responses}) == 1


def test_places_tell_nothing(world: RankingSet) -> None:
    counts: Counter[int] = Counter()
    for ranking in world.rankings:
        best = [place for place, tier in enumerate(ranking.tiers) if tier == 0]
        if len(best) == 1:
            counts[best[0]] += 1
    assert chisquare([counts[place] for place in range(3)]).pvalue > 1e-3


@pytest.mark.parametrize("quality_weight", [1.0, 0.25])
def test_held_out_judgments_are_exact(make: Make, quality_weight: float) -> None:
    for ranking in draw(make, annotators=12, quality_weight=quality_weight).rankings:
        values = [worth(ranking.group, text, quality_weight) for text in ranking.responses]
        exact = tuple(sorted(set(values), reverse=True).index(value) for value in values)
        if ranking.split == "test":
            assert ranking.tiers == exact
        else:
            assert sorted(ranking.tiers) == [0, 1, 2]


def test_without_noise_training_judgments_are_exact_too(make: Make) -> None:
    for ranking in draw(make, annotators=6, sharpness=None).rankings:
        values = [worth(ranking.group, text) for text in ranking.responses]
        assert ranking.tiers == tuple(sorted(set(values), reverse=True).index(value) for value in values)


@pytest.mark.parametrize(("test_exact", "split"), [(True, "train"), (False, "test")])
def test_judgments_follow_plackett_luce(make: Make, test_exact: bool, split: str) -> None:
    judgments = {"train_judgments": 0, "test_judgments": 0, f"{split}_judgments": 24}
    world = draw(make, type_signal=1.0, sharpness=0.7, test_exact=test_exact, annotators=40, **judgments)
    seen: dict[tuple[float, ...], Counter[tuple[int, ...]]] = {}
    for ranking in world.rankings:
        values = [worth(ranking.group, text) for text in ranking.responses]
        seen.setdefault(tuple(sorted(values)), Counter())[by_utility(values, ranking.tiers)] += 1
    assert set(seen) == {(-1.0, 1.0, 1.0), (-1.0, -1.0, 1.0)}
    for utilities, counts in seen.items():
        expected: dict[tuple[int, ...], float] = {}
        for order in itertools.permutations(range(3)):
            weights = np.exp(0.7 * np.array(utilities)[list(order)])
            key = by_utility(utilities, [order.index(response) for response in range(3)])
            probability = float(np.prod([weights[t] / weights[t:].sum() for t in range(3)]))
            expected[key] = expected.get(key, 0.0) + probability * sum(counts.values())
        assert set(counts) <= set(expected)
        assert chisquare([counts[key] for key in expected], list(expected.values())).pvalue > 1e-3


def by_utility(values: Sequence[float], tiers: Sequence[int]) -> tuple[int, ...]:
    """Tiers in the order of utilities; responses of the same utility are exchangeable, so theirs are sorted."""
    return tuple(tier for _, tier in sorted(zip(values, tiers, strict=True)))


def test_forms(make: Make) -> None:
    few: dict[str, Any] = {"annotators": 4, "responses": 4}
    full = draw(make, **few).rankings
    best = draw(make, form="best", **few).rankings
    top = draw(make, form="top", top=2, **few).rankings
    for whole, one, two in zip(full, best, top, strict=True):
        assert whole.responses == one.responses == two.responses
        if whole.split == "train":
            assert one.tiers == tuple(min(tier, 1) for tier in whole.tiers)
            assert two.tiers == tuple(min(tier, 2) for tier in whole.tiers)
    pairs = draw(make, annotators=4, responses=2, form="pair").rankings
    assert {tuple(sorted(ranking.tiers)) for ranking in pairs} == {(0, 1)}


def test_ties_are_of_training_judgments_and_empty_ones_are_counted(make: Make) -> None:
    world = draw(make, annotators=40, responses=2, form="pair", ties=0.25, probe_menus=0)
    splits = Counter(ranking.split for ranking in world.rankings)
    assert splits["test"] == 40 * 16
    assert splits["train"] + world.dropped["all_tied"] == 40 * 16
    assert binomtest(world.dropped["all_tied"], 40 * 16, 0.25).pvalue > 1e-3


def test_the_probe_is_public_and_answered_by_everybody(make: Make) -> None:
    few: dict[str, Any] = {"annotators": 30, "sharpness": 1.0, "train_judgments": 2, "test_judgments": 0}
    world = draw(make, probe_menus=12, **few)
    assert len(world.probe) == 12 and set(world.answers) == set(world.types)
    assert len({menu.prompt for menu in world.probe}) == 12
    surplus, variance = dict.fromkeys(WISHES, 0.0), dict.fromkeys(WISHES, 0.0)
    for name, answers in world.answers.items():
        assert [sorted(tiers) for tiers in answers] == [[0, 1, 2]] * 12
        for menu, tiers in zip(world.probe, answers, strict=True):
            weights = np.exp([worth(world.types[name], text) for text in menu.responses])
            likely = weights.max() * (weights == weights.max()).sum() / weights.sum()
            surplus[world.types[name]] += (weights[tiers.index(0)] == weights.max()) - likely
            variance[world.types[name]] += likely * (1.0 - likely)
    assert all(abs(surplus[name]) < 3.3 * np.sqrt(variance[name]) for name in WISHES)
    assert len({tuple(answers) for answers in world.answers.values()}) == 30
    # The probe changes no judgment, and more people change neither the probe nor the others' answers.
    assert draw(make, probe_menus=0, **few).rankings == world.rankings
    more = draw(make, probe_menus=12, **{**few, "annotators": 34})
    assert more.probe == world.probe and {name: more.answers[name] for name in world.answers} == world.answers


def test_any_number_of_people_has_the_shares(make: Make) -> None:
    world = draw(make, annotators=200, train_judgments=1, test_judgments=0, probe_menus=0, responses=2)
    types = list(world.types.values())
    for people in range(1, 201):
        counts = Counter(types[:people])
        for kind in TYPES:
            assert abs(counts[str(kind["name"])] - float(str(kind["share"])) * people) <= 1.0


def test_a_person_stays_the_same_when_more_join(make: Make) -> None:
    few, many = draw(make, annotators=5), draw(make, annotators=9)
    assert few.rankings == many.rankings[: len(few.rankings)]


def test_a_seed_is_a_world_and_a_world_seed_fixes_it(make: Make) -> None:
    small: dict[str, Any] = {"annotators": 2, "probe_menus": 2, "train_judgments": 4, "test_judgments": 4}
    assert draw(make, 1, **small) == draw(make, 1, **small) != draw(make, 2, **small)
    assert draw(make, 1, world_seed=5, **small) == draw(make, 2, world_seed=5, **small) == draw(make, 5, **small)


def test_the_true_utility_judges_any_text() -> None:
    judge = true_utility([AnnotatorType(**kind) for kind in TYPES], 0.5)  # type: ignore[arg-type]
    assert judge("praise", "a lovely film, wonderful and superb") == 1.0
    assert judge("criticism", "a lovely film, wonderful and superb") == -1.0
    assert judge("ornate", "undeniably lovely") == 1.0 and judge("ornate", "totally lovely") == -1.0
    assert judge("praise", "lovely but boring") == 0.0
    assert judge("ornate", "blah blah") == -0.5 and judge("praise", "") == 0.0
    assert judge("praise", "lovely blah") == 0.5


def test_a_path_is_read_instead(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    row = {"prompt": "p", "responses": ["a", "b", "c"], "ranks": [2, 1, 2], "split": "test", "annotator": "x"}
    path.write_text(json.dumps(row))
    assert draw(make, path=str(path)).rankings == [Ranking("p", ("a", "b", "c"), (1, 0, 1), "test", "all", "x")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ties": 1.0}, r"data\.ties="),
        ({"type_signal": 1.1}, r"data\.type_signal="),
        ({"responses": 1}, r"data\.responses="),
        ({"types": []}, r"data\.types="),
        ({"types": [{**TYPES[0], "share": 0.0}]}, r"data\.types="),
        ({"types": [TYPES[0], TYPES[0]]}, "two types are called 'praise'"),
        ({"form": "pair"}, r"data\.form=pair"),
    ],
)
def test_settings_that_are_refused(make: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        draw(make, **changes)
