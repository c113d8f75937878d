"""E2E rankings: criteria are groups, ties and repeated sentences are cleaned, and the published file is whole."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from fedalign.data.rankings import Ranking, RankingSet
from fedalign.errors import UserError
from fedalign.rng import Streams

Make = Callable[..., Any]
Write = Callable[[str, Sequence[dict[str, Any]]], Path]


def judged(ranks: list[int], **more: Any) -> dict[str, Any]:
    row = {"prompt": "name[Blue Spice]", "responses": ["A.", "B.", "C."], "ranks": ranks}
    return {**row, "criterion": "quality", "annotator": "w1", "split": "train", **more}


def load(make: Make, path: Path | None, **changes: Any) -> RankingSet:
    source = make("data/e2e_rankings", path=None if path is None else str(path), **changes)
    result: RankingSet = source.load(Streams(0))
    return result


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl", ".csv", ".parquet"])
def test_ranks_become_tiers_and_criteria_groups(make: Make, write: Write, suffix: str) -> None:
    path = write(f"e2e{suffix}", [judged([4, 1, 4]), judged([3, 2, 1], criterion="naturalness", split="test")])
    assert load(make, path).rankings == [
        Ranking("name[Blue Spice]", ("A.", "B.", "C."), (1, 0, 1), "train", "quality", "w1"),
        Ranking("name[Blue Spice]", ("A.", "B.", "C."), (2, 1, 0), "test", "naturalness", "w1"),
    ]


def test_the_same_sentence_twice_is_one_response(make: Make, write: Write) -> None:
    rows = [
        judged([1, 2, 2], responses=["A.", "B.", "B."]),
        judged([1, 2, 3], responses=["A.", "B.", "B."]),
        judged([1, 1, 1]),
    ]
    found = load(make, write("e2e.jsonl", rows))
    assert [(ranking.responses, ranking.tiers) for ranking in found.rankings] == [(("A.", "B."), (0, 1))]
    assert found.dropped == {"response_merged": 1, "responses_repeated": 1, "all_tied": 1}


def test_criteria(make: Make, write: Write) -> None:
    path = write("e2e.jsonl", [judged([1, 2, 3]), judged([1, 2, 3], criterion="naturalness")])
    found = load(make, path, criteria=["naturalness"])
    assert [ranking.group for ranking in found.rankings] == ["naturalness"]
    assert found.dropped == {"other_criterion": 1}
    assert len(load(make, path, criteria=["naturalness", "quality"]).rankings) == 2
    with pytest.raises(UserError, match=r"data\.criteria: no criterion 'qualty' in .*quality"):
        load(make, path, criteria=["qualty", "quality"])


def test_without_a_split_a_hash_decides(make: Make, write: Write) -> None:
    row = judged([1, 2, 3])
    del row["split"]
    path = write("e2e.jsonl", [row])
    assert load(make, path, test_fraction=0.0).rankings[0].split == "train"
    assert load(make, path, test_fraction=0.999999).rankings[0].split == "test"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (judged([1, 2]), "line 1: 'ranks' holds 2 ranks for 3 responses"),
        (judged([1, 2, 3], criterion=None), "line 1: 'criterion' is empty"),
        (judged([1, 2, 3], split="dev"), "line 1: 'split' holds 'dev'"),
        ({"prompt": "p"}, "line 1: no column 'responses'"),
    ],
)
def test_malformed_rows_are_refused(make: Make, tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = tmp_path / "e2e.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(UserError, match=message):
        load(make, path)


def test_the_file_must_be_named(make: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.path is not set; .*there is none on the hub"):
        load(make, None)
    with pytest.raises(UserError, match="no such file"):
        load(make, tmp_path / "none.jsonl")


@pytest.mark.data
def test_the_real_rankings(make: Make, real_data: Callable[[str], Path]) -> None:
    path = real_data("e2e_rankings/e2e_rankings.jsonl.gz")
    found = load(make, path)
    assert found.dropped == {"response_merged": 350, "all_tied": 2185, "responses_repeated": 72}
    # Of 7,218 judgments; of their 2,778 with three scores or more, 55 rank the same sentence twice.
    assert len(found.rankings) == 7218 - 2185 - 72 == 4961
    tiers = Counter(max(ranking.tiers) + 1 for ranking in found.rankings)
    assert tiers == {2: 2238, 3: 1283, 4: 695, 5: 745} and sum(tiers[n] for n in (3, 4, 5)) == 2778 - 55
    assert Counter(ranking.split for ranking in found.rankings) == {"train": 3899, "test": 1062}
    assert Counter(ranking.group for ranking in found.rankings) == {"naturalness": 2835, "quality": 2126}
    assert len({ranking.annotator for ranking in found.rankings}) == 154
    quality = load(make, path, criteria=["quality"])
    assert len(quality.rankings) == 2126 and quality.dropped["other_criterion"] == 4239
