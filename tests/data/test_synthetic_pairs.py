"""The synthetic pair world: groups want opposite things, everybody wants quality, and lengths tell nothing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from fedalign.data.pairs import Pair
from fedalign.data.synthetic_pairs import filler_score, group_signs, style_score, tone_score
from fedalign.errors import UserError
from fedalign.rng import Streams

Make = Callable[..., Any]


def draw(make: Make, seed: int = 0, **changes: Any) -> list[Pair]:
    result = make("data/synthetic_pairs", **changes).load(Streams(seed))
    assert result.dropped == {}
    return list(result.pairs)


def chance(hits: int, n: int, p: float) -> bool:
    """Say whether a count may come from a binomial distribution."""
    return bool(binomtest(hits, n, p).pvalue > 1e-3)


def test_who_wants_what() -> None:
    assert group_signs(1) == {"praise": {"tone": 1}, "criticism": {"tone": -1}}
    assert group_signs(2) == {
        "praise-plain": {"tone": 1, "style": 1},
        "praise-ornate": {"tone": 1, "style": -1},
        "criticism-plain": {"tone": -1, "style": 1},
        "criticism-ornate": {"tone": -1, "style": -1},
    }


def test_the_default_world(make: Make) -> None:
    pairs = draw(make)
    own = Counter((pair.annotator, pair.split) for pair in pairs)
    assert own == {(f"annotator-{i:03d}", split): 16 for i in range(1, 101) for split in ("train", "test")}
    groups = {pair.annotator: pair.group for pair in pairs}
    assert Counter(groups.values()) == {"praise": 50, "criticism": 50}
    assert groups["annotator-001"] == "praise" and groups["annotator-002"] == "criticism"
    for annotator in groups:
        mine = [pair for pair in pairs if pair.annotator == annotator]
        assert {pair.group for pair in mine} == {groups[annotator]}
        assert len({pair.prompt for pair in mine}) == len(mine)
    # Nobody has a text that somebody else judges, so nothing is learnt by heart.
    assert len({(pair.prompt, pair.chosen, pair.rejected) for pair in pairs}) == len(pairs)
    assert chance(sum(pair.conflict for pair in pairs), len(pairs), 0.5)


@pytest.mark.parametrize("contested", [1, 2])
@pytest.mark.parametrize("words", [1, 3])
def test_conflict_pairs_differ_in_one_contested_attribute_and_agreed_ones_in_quality(
    make: Make, contested: int, words: int
) -> None:
    pairs = draw(make, contested=contested, words=words, annotators=20)
    contested_styles = contested == 2
    differing: Counter[str] = Counter()
    for pair in pairs:
        signs = group_signs(2 if contested_styles else 1)[pair.group]
        tones = tone_score(pair.chosen), tone_score(pair.rejected)
        styles = style_score(pair.chosen), style_score(pair.rejected)
        assert {abs(tone) for tone in tones} == {words}
        assert {abs(style) for style in styles} == {(2 * words - 1) if contested_styles else 0}
        assert filler_score(pair.chosen) == 0
        assert (filler_score(pair.rejected) == 0) == pair.conflict
        differ = [name for name, (a, b) in {"tone": tones, "style": styles}.items() if a != b]
        assert len(differ) == (1 if pair.conflict else 0)
        if pair.conflict:
            scores = {"tone": tones, "style": styles}[differ[0]]
            assert np.sign(scores[0]) == signs[differ[0]]
            differing[differ[0]] += 1
    assert set(differing) == ({"tone", "style"} if contested_styles else {"tone"})


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_share_of_conflict(make: Make, share: float) -> None:
    assert {pair.conflict for pair in draw(make, annotators=4, conflict_share=share)} == {bool(share)}


def test_a_coin_decides_which_response_is_longer(make: Make) -> None:
    for pairs in (draw(make), draw(make, contested=2)):
        cells: dict[tuple[str, bool, str], list[bool]] = {}
        for pair in pairs:
            assert len(pair.chosen) != len(pair.rejected)
            key = (pair.group, pair.conflict, pair.split)
            cells.setdefault(key, []).append(len(pair.chosen) > len(pair.rejected))
        for key, longer in cells.items():
            assert chance(sum(longer), len(longer), 0.5), key


def test_the_length_shortcut_is_in_training_alone(make: Make) -> None:
    plain, padded = draw(make), draw(make, length_shortcut=1.0)
    clearly = [len(pair.chosen) >= 1.5 * len(pair.rejected) for pair in padded if pair.split == "train"]
    assert all(clearly)
    test = [len(pair.chosen) > len(pair.rejected) for pair in padded if pair.split == "test"]
    assert chance(sum(test), len(test), 0.5)
    half = [
        len(pair.chosen) >= 1.5 * len(pair.rejected)
        for pair in draw(make, length_shortcut=0.5)
        if pair.split == "train"
    ]
    natural = np.mean([len(pair.chosen) >= 1.5 * len(pair.rejected) for pair in plain if pair.split == "train"])
    assert chance(sum(half), len(half), float(0.5 + 0.5 * natural))


@pytest.mark.slow
def test_noise_turns_training_judgments_round(make: Make) -> None:
    def turned(split: str, noise: float) -> list[bool]:
        pairs = [pair for pair in draw(make, noise=noise, conflict_share=1.0) if pair.split == split]
        return [np.sign(tone_score(pair.chosen)) != group_signs(1)[pair.group]["tone"] for pair in pairs]

    train = turned("train", 0.2)
    assert chance(sum(train), len(train), 0.2)
    assert not any(turned("test", 0.2)) and not any(turned("train", 0.0))


@pytest.mark.parametrize(("share", "annotators", "last"), [(0.1, 100, 10), (0.3, 10, 3), (0.25, 8, 2), (0.9, 10, 9)])
def test_the_minority_is_spread_evenly(make: Make, share: float, annotators: int, last: int) -> None:
    pairs = draw(make, minority_share=share, annotators=annotators, train_judgments=1, test_judgments=0)
    groups = [pair.group for pair in pairs]
    assert groups.count("criticism") == last
    assert abs(groups[: annotators // 2].count("criticism") - last / 2) <= 1


def test_four_groups_are_equal(make: Make) -> None:
    pairs = draw(make, contested=2, annotators=40, train_judgments=1, test_judgments=0)
    assert set(Counter(pair.group for pair in pairs).values()) == {10}


def test_a_seed_is_a_world_and_a_world_seed_fixes_it(make: Make) -> None:
    small: dict[str, Any] = {"annotators": 3}
    assert draw(make, 1, **small) == draw(make, 1, **small)
    assert draw(make, 1, **small) != draw(make, 2, **small)
    assert draw(make, 1, world_seed=5, **small) == draw(make, 2, world_seed=5, **small) == draw(make, 5, **small)


def test_a_person_stays_the_same_when_more_join(make: Make) -> None:
    few, many = draw(make, annotators=3), draw(make, annotators=7)
    assert few == many[: len(few)]


def test_a_path_is_read_instead(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"prompt": "p", "chosen": "a", "rejected": "b", "split": "test", "annotator": "x"}))
    assert draw(make, path=str(path)) == [Pair("p", "a", "b", "test", "all", "x")]


@pytest.mark.parametrize(
    "changes",
    [
        {"contested": 3},
        {"noise": 0.6},
        {"words": 0},
        {"conflict_share": 1.1},
        {"minority_share": 1.0},
        {"annotators": 0},
    ],
)
def test_settings_out_of_range_are_refused(make: Make, changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"data.{next(iter(changes))}="):
        draw(make, **changes)
