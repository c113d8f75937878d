"""PandaLM: votes are judgments of pairs, derived rankings are read beside them, and no vote is read twice."""

from __future__ import annotations

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

TASK = {"instruction": "Shorten.", "input": "A long text", "split": "train"}


def pair(first: str, second: str, a1: Any, a2: Any, **more: Any) -> dict[str, Any]:
    return {**TASK, "responses": [first, second], "annotators": {"a1": a1, "a2": a2}, **more}


def ranked(annotator: str, ranks: list[int], transitive: Any = True, **more: Any) -> dict[str, Any]:
    row = {**TASK, "annotator": annotator, "responses": ["x", "y", "z"], "ranks": ranks, "transitive": transitive}
    return {**row, **more}


PAIRS = [pair("x", "y", 1, 2), pair("x", "w", 0, 2, input="", split="test")]
RANKINGS = [ranked("a1", [1, 2, 2]), ranked("a2", [2, 1, 3], transitive=False)]


def load(make: Make, folder: Path | None, **changes: Any) -> RankingSet:
    source = make("data/pandalm", path=None if folder is None else str(folder), **changes)
    result: RankingSet = source.load(Streams(0))
    return result


@pytest.fixture
def folder(write: Write) -> Path:
    write("pairs.jsonl", PAIRS)
    return write("derived_rankings.jsonl.gz", RANKINGS).parent


PROMPT = "Shorten.\n\nA long text"
FIRST = Ranking(PROMPT, ("x", "y", "z"), (0, 1, 1), "train", "all", "a1")
SECOND = Ranking(PROMPT, ("x", "y", "z"), (1, 0, 2), "train", "all", "a2")
VOTES = [
    Ranking(PROMPT, ("x", "y"), (0, 1), "train", "all", "a1"),
    Ranking(PROMPT, ("x", "y"), (1, 0), "train", "all", "a2"),
    Ranking("Shorten.", ("x", "w"), (1, 0), "test", "all", "a2"),
]


def test_rankings(make: Make, folder: Path) -> None:
    assert load(make, folder).rankings == [FIRST, SECOND]
    dropped = load(make, folder, intransitive="drop")
    assert dropped.rankings == [FIRST] and dropped.dropped == {"intransitive": 1}


def test_each_vote_is_a_judgment(make: Make, folder: Path) -> None:
    found = load(make, folder, judgments="pairs")
    assert found.rankings == VOTES and found.dropped == {"all_tied": 1}


def test_no_vote_is_read_twice(make: Make, folder: Path) -> None:
    both = load(make, folder, judgments="both")
    assert both.rankings == [FIRST, SECOND, VOTES[2]]
    assert both.dropped == {"all_tied": 1, "in_ranking": 2}
    # Votes of a ranking that is dropped are still votes.
    both = load(make, folder, judgments="both", intransitive="drop")
    assert both.rankings == [FIRST, VOTES[1], VOTES[2]]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_other_formats(make: Make, write: Write, suffix: str) -> None:
    rows = [ranked("a1", [1, 2, 2], transitive="true" if suffix == ".csv" else True)]
    assert load(make, write(f"derived_rankings{suffix}", rows).parent).rankings == [FIRST]


def test_truth_values_and_numbers_are_answers_too(make: Make, write: Write) -> None:
    rows = [ranked("a1", [1, 2, 3], responses=[True, 4, "z"])]
    found = load(make, write("derived_rankings.jsonl", rows).parent)
    assert found.rankings[0].responses == ("True", "4", "z")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([pair("x", "y", 3, 1)], "line 1: the vote of a1 is 3; it must be 1, 2 or 0"),
        ([pair("x", "y", True, 1)], "line 1: the vote of a1 is True"),
        ([{**pair("x", "y", 1, 1), "annotators": [1, 2]}], "line 1: 'annotators' holds '"),
        ([{**pair("x", "y", 1, 1), "input": None}], "line 1: 'input' holds 'None'"),
    ],
)
def test_malformed_votes_are_refused(make: Make, write: Write, rows: list[dict[str, Any]], message: str) -> None:
    path = write("pairs.jsonl", rows)
    with pytest.raises(UserError, match=message):
        load(make, path.parent, judgments="pairs")


def test_malformed_rankings_are_refused(make: Make, write: Write) -> None:
    path = write("derived_rankings.jsonl", [ranked("a1", [1, 2, 3], transitive="maybe so")])
    with pytest.raises(UserError, match="'transitive' holds 'maybe so'"):
        load(make, path.parent)


def test_the_tables_must_be_there(make: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.path is not set"):
        load(make, None)
    with pytest.raises(UserError, match="no table 'derived_rankings' in it"):
        load(make, tmp_path)


@pytest.mark.data
def test_the_real_judgments(make: Make, real_data: Callable[[str], Path]) -> None:
    folder = real_data("pandalm/pairs.jsonl.gz").parent
    rankings = load(make, folder)
    assert rankings.dropped == {"response_empty": 51, "all_tied": 15, "responses_few": 9}
    assert len(rankings.rankings) == 300 - 15 - 9
    assert set(Counter(ranking.annotator for ranking in rankings.rankings)) == {"pl_a1", "pl_a2", "pl_a3"}
    assert load(make, folder, intransitive="drop").dropped["intransitive"] == 11
    pairs = load(make, folder, judgments="pairs")
    assert pairs.dropped == {"judgment_repeated": 238, "response_empty": 162, "responses_few": 162, "all_tied": 320}
    assert len(pairs.rankings) == 3 * 999 - 238 - 162 - 320
    both = load(make, folder, judgments="both")
    assert len(both.rankings) == 1390 and both.dropped["in_ranking"] == 1584
