"""Pairs as rankings of two: what was chosen comes first, ties go, groups are types where a world says so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from fedalign.build import build
from fedalign.config import resolve
from fedalign.data.pair_rankings import PairRankings
from fedalign.data.pairs import PairSource
from fedalign.data.rankings import Ranking, RankingSet, RankingSource
from fedalign.errors import UserError
from fedalign.rng import Streams

Write = Callable[[str, Sequence[dict[str, Any]]], Path]

PAIR: dict[str, Any] = {
    "prompt": "How?",
    "chosen": "So.",
    "rejected": "No.",
    "annotator": "ann",
    "group": "north",
    "split": "train",
}


def load(name: str, *overrides: str) -> RankingSet:
    return build(resolve([f"data={name}", *overrides])["data"], RankingSource, "data").load(Streams(0))


def test_the_chosen_response_is_first_wherever_it_stands(write: Write) -> None:
    rows = [PAIR, {**PAIR, "chosen": "No.", "rejected": "So.", "annotator": None, "split": "test", "group": None}]
    result = load("pairs_file_rankings", f"data.path={write('p.jsonl', rows)}")
    # The order of the responses is that of their texts, so it does not tell what was chosen.
    assert result.rankings == [
        Ranking("How?", ("No.", "So."), (1, 0), "train", "north", "ann"),
        Ranking("How?", ("No.", "So."), (0, 1), "test", "all"),
    ]
    assert (result.types, result.probe, result.answers) == ({}, (), {})


def test_ties_are_dropped_and_counted(write: Write) -> None:
    rows = [PAIR, {**PAIR, "annotator": "ben", "tie": True}, PAIR]
    path = write("p.jsonl", rows)
    assert load("pairs_file_rankings", f"data.path={path}").dropped == {"all_tied": 1, "judgment_repeated": 1}
    alone = write("ties.jsonl", rows[1:2])
    with pytest.raises(UserError, match="all 1 pairs are ties"):
        load("pairs_file_rankings", f"data.path={alone}")


def test_the_worlds_groups_are_types() -> None:
    world = ("data.source.annotators=6", "data.source.train_judgments=3", "data.source.test_judgments=2")
    result = load("synthetic_pairs_rankings", *world)
    pairs = build(
        resolve(["data=synthetic_pairs", *(key.replace(".source", "") for key in world)])["data"], PairSource, ""
    )
    for ranking, pair in zip(result.rankings, pairs.load(Streams(0)).pairs, strict=True):
        best, worst = (ranking.responses[ranking.tiers.index(tier)] for tier in (0, 1))
        assert (best, worst) == (pair.chosen, pair.rejected) and ranking.responses == tuple(sorted((best, worst)))
        assert (ranking.prompt, ranking.split, ranking.annotator) == (pair.prompt, pair.split, pair.annotator)
        assert ranking.group == pair.group == result.types[str(ranking.annotator)]
    assert Counter(result.types.values()) == {"praise": 3, "criticism": 3}
    assert load("synthetic_pairs_rankings", *world, "data.types_from_groups=false").types == {}


def test_an_annotator_of_two_groups_has_no_type(write: Write) -> None:
    rows = [PAIR, {**PAIR, "prompt": "Why?", "group": "south"}, {**PAIR, "annotator": None}]
    path = write("p.jsonl", rows)
    with pytest.raises(UserError, match=r"data\.types_from_groups=true: annotator 'ann' .* 'north' and 'south'"):
        load("pairs_file_rankings", f"data.path={path}", "data.types_from_groups=true")
    known = load("pairs_file_rankings", f"data.path={write('q.jsonl', rows[::2])}", "data.types_from_groups=true")
    assert known.types == {"ann": "north"} and len(known.rankings) == 2


def test_keys_of_the_source_can_be_set(write: Write) -> None:
    rows = [{**PAIR, "prompt": f"{i}?", "split": None} for i in range(40)]
    path = write("p.jsonl", rows)
    for fraction, expected in ((0.0, {"train"}), (0.5, {"train", "test"})):
        result = load("pairs_file_rankings", f"data.path={path}", f"data.source.test_fraction={fraction}")
        assert {ranking.split for ranking in result.rankings} == expected


@pytest.mark.parametrize("name", ["llmfao", "hh_rlhf", "pairs_file", "synthetic_pairs"])
def test_settings_reach_the_source(name: str) -> None:
    node = resolve([f"data={name}_rankings", "data.path=here", "data.prompt_tail=7"])["data"]
    source = build(node, RankingSource, "data")
    assert isinstance(source, PairRankings)
    inner: Any = source.source
    assert (inner.path, inner.prompt_tail, source.prompt_tail) == ("here", 7, 7)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.path=.*no such file"):
        load("pairs_file_rankings", f"data.path={tmp_path / 'none.jsonl'}")
    with pytest.raises(UserError, match=r"data\.path is not set"):
        load("pairs_file_rankings")


@pytest.mark.data
def test_the_real_pairs(real_data: Callable[[str], Path]) -> None:
    folder = real_data("llmfao/comparisons.jsonl.gz").parent
    result = load("llmfao_rankings", f"data.path={folder}")
    assert result.dropped == {"response_empty": 1208, "judgment_repeated": 120, "all_tied": 2790}
    assert all(len(ranking.responses) == 2 for ranking in result.rankings)
    dialogues = load("hh_rlhf_rankings", f"data.path={real_data('hh_rlhf/pairs.jsonl.gz')}")
    assert Counter(ranking.split for ranking in dialogues.rankings) == {"train": 3730, "test": 926}
    assert {ranking.annotator for ranking in dialogues.rankings} == {None}
