"""A user's own rankings in every format, and each thing that can be wrong with them in one line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from fedalign.data.rankings import Ranking, RankingSet
from fedalign.errors import UserError
from fedalign.rng import Streams

Make = Callable[..., Any]
Write = Callable[[str, Sequence[dict[str, Any]]], Path]

PLAIN = {"prompt": "How?", "responses": ["So.", "No, [not] so.", "Ä"], "ranks": [2, 1, 3]}
FULL = {**PLAIN, "annotator": "ann", "group": "north", "split": "test"}
CHAT = {
    "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How?"}],
    "responses": [[{"role": "assistant", "content": "So."}], [{"role": "assistant", "content": "No."}]],
    "ranks": [2, 1],
}
FORMATS = ["r.jsonl", "r.jsonl.gz", "r.csv", "r.parquet"]


def load(make: Make, path: Path | None, **changes: Any) -> RankingSet:
    source = make("data/rankings_file", path=None if path is None else str(path), **changes)
    result: RankingSet = source.load(Streams(0))
    return result


@pytest.mark.parametrize("name", FORMATS)
def test_every_format(make: Make, write: Write, name: str) -> None:
    other = {**FULL, "ranks": [None, 1.5, 1.5], "annotator": "7", "split": "train", "group": "south"}
    result = load(make, write(name, [FULL, other]))
    responses = ("So.", "No, [not] so.", "Ä")
    assert result.rankings == [
        Ranking("How?", responses, (1, 0, 2), "test", "north", "ann"),
        Ranking("How?", responses, (1, 0, 0), "train", "south", "7"),
    ]
    assert (result.dropped, result.types, result.probe, result.answers) == ({}, {}, (), {})


@pytest.mark.parametrize("name", FORMATS)
def test_conversations(make: Make, write: Write, name: str) -> None:
    prompt = "System: Be brief.\n\nHuman: How?\n\nAssistant:"
    expected = Ranking(prompt, ("So.", "No."), (1, 0), "train", "all")
    assert load(make, write(name, [CHAT]), test_fraction=0.0).rankings == [expected]


@pytest.mark.parametrize("name", FORMATS)
def test_optional_columns_may_be_empty(make: Make, write: Write, name: str) -> None:
    nothing = "" if name.endswith("csv") else None
    empty = {**PLAIN, **dict.fromkeys(("annotator", "group", "split", "probe"), nothing)}
    expected = Ranking("How?", ("So.", "No, [not] so.", "Ä"), (1, 0, 2), "train", "all")
    assert load(make, write(name, [empty]), test_fraction=0.0).rankings == [expected]


def test_drops_are_counted(make: Make, write: Write) -> None:
    rows = [FULL, FULL, {**FULL, "ranks": [1, 1, 1]}, {**FULL, "ranks": [None] * 3}]
    result = load(make, write("r.jsonl", rows))
    assert len(result.rankings) == 1 and result.dropped == {"judgment_repeated": 1, "all_tied": 1, "unranked": 1}


def test_the_path_must_be_given(make: Make) -> None:
    with pytest.raises(UserError, match=r"data\.path is not set"):
        load(make, None)


def without(row: dict[str, Any], column: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != column}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**without(PLAIN, "ranks"), "rank": [1]}, "no column 'ranks'; did you mean 'rank'?"),
        ({**PLAIN, "prompt": 3}, "'prompt' holds '3'; it must be a text"),
        ({**PLAIN, "responses": "So."}, "'responses' holds 'So.'; it must be a list of two or more responses"),
        ({**PLAIN, "responses": ["So."], "ranks": [1]}, "'responses' holds 1 of them; a judgment needs two"),
        ({**PLAIN, "responses": ["So.", 2, "x"]}, "'responses' holds '2'; it must be a text"),
        ({**PLAIN, "responses": ["So.", None, "x"]}, "'responses' holds 'None'"),
        ({**CHAT, "responses": [CHAT["prompt"], "x"]}, "'responses' holds a message of the system"),
        ({**PLAIN, "ranks": 1}, "'ranks' holds '1'; it must be a list with a number for each response"),
        ({**PLAIN, "ranks": [1, 2]}, "'ranks' holds 2 ranks for 3 responses; give one for each, or null"),
        ({**PLAIN, "ranks": [1, 2, 3, 4]}, "'ranks' holds 4 ranks for 3 responses"),
        ({**PLAIN, "ranks": [1, "2", 3]}, r"'ranks' holds '2'; a rank must be a number \(1 is best"),
        ({**PLAIN, "ranks": [1, True, 3]}, "'ranks' holds 'True'; a rank must be a number"),
        ({**PLAIN, "ranks": [1, float("nan"), 3]}, "'ranks' holds 'nan'; a rank must be a number"),
        ({**PLAIN, "ranks": [1, float("-inf"), 3]}, "'ranks' holds '-inf'; a rank must be a number"),
        ({**PLAIN, "annotator": 1.5}, "'annotator' holds '1.5'; it must be a name"),
        ({**PLAIN, "group": ["a"]}, "'group' holds"),
        ({**PLAIN, "split": "tests"}, "'split' holds 'tests'; did you mean 'test'"),
        ({**PLAIN, "probe": "maybe"}, "'probe' holds 'maybe'; it must be true or false"),
        ({**PLAIN, "probe": True}, "'annotator' is empty in a row of the probe; say who answered"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_row(make: Make, write: Write, row: dict[str, Any], message: str) -> None:
    path = write("r.jsonl", [PLAIN, row])
    with pytest.raises(UserError, match=message) as error:
        load(make, path)
    assert str(error.value).startswith(f"{path} line 2: ") and "\n" not in str(error.value)


def test_a_csv_list_must_be_json(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text('prompt,responses,ranks\np,"[""a"", ""b""]",1;2\n')
    with pytest.raises(UserError, match="row 1: 'ranks' holds '1;2'; it must be a JSON list"):
        load(make, path)
