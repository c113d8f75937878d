"""A user's own pairs in every format and form, and each thing that can be wrong with them in one line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from fedalign.data.pairs import Pair, PairSet
from fedalign.errors import UserError
from fedalign.rng import Streams

Make = Callable[..., Any]
Write = Callable[[str, Sequence[dict[str, Any]]], Path]

PLAIN = {"prompt": "How?", "chosen": "So.", "rejected": "No, [not] so."}
CHAT = {
    "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How?"}],
    "chosen": [{"role": "assistant", "content": "So."}],
    "rejected": [{"role": "assistant", "content": "No,"}, {"role": "assistant", "content": "not so."}],
}
FULL = {**PLAIN, "annotator": "ann", "group": "north", "split": "test", "tie": False}


def load(make: Make, path: Path | None, **changes: Any) -> PairSet:
    source = make("data/pairs_file", path=None if path is None else str(path), **changes)
    result: PairSet = source.load(Streams(0))
    return result


@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz", "p.csv", "p.parquet"])
def test_every_format(make: Make, write: Write, name: str) -> None:
    other = {**FULL, "chosen": 'Ä,\n"b"', "annotator": "7", "split": "train", "tie": True}
    result = load(make, write(name, [FULL, other]))
    assert result.pairs == [
        Pair("How?", "So.", "No, [not] so.", "test", "north", "ann"),
        Pair("How?", 'Ä,\n"b"', "No, [not] so.", "train", "north", "7", tie=True),
    ]


@pytest.mark.parametrize("name", ["p.jsonl", "p.csv", "p.parquet"])
def test_conversations(make: Make, write: Write, name: str) -> None:
    result = load(make, write(name, [CHAT]), test_fraction=0.0)
    assert result.pairs == [
        Pair("System: Be brief.\n\nHuman: How?\n\nAssistant:", "So.", "No,\n\nnot so.", "train", "all")
    ]


@pytest.mark.parametrize("name", ["p.jsonl", "p.csv", "p.parquet"])
def test_optional_columns_may_be_empty(make: Make, write: Write, name: str) -> None:
    nothing = "" if name.endswith("csv") else None
    empty = {**PLAIN, "annotator": nothing, "group": nothing, "split": nothing, "tie": nothing}
    expected = Pair("How?", "So.", "No, [not] so.", "train", "all")
    assert load(make, write(name, [empty]), test_fraction=0.0).pairs == [expected]


def test_a_whole_number_is_a_name(make: Make, write: Write) -> None:
    pair = load(make, write("p.jsonl", [{**FULL, "annotator": 7, "group": 0}])).pairs[0]
    assert (pair.annotator, pair.group) == ("7", "0")


def test_ties_are_kept_or_dropped(make: Make, write: Write) -> None:
    path = write("p.jsonl", [FULL, {**FULL, "tie": True}])
    assert len(load(make, path).pairs) == 2
    assert load(make, path, ties="drop").dropped == {"tie": 1}


def test_drops_are_counted(make: Make, write: Write) -> None:
    rows = [FULL, FULL, {**FULL, "chosen": ""}, {**FULL, "rejected": "So."}]
    result = load(make, write("p.jsonl", rows))
    assert len(result.pairs) == 1
    assert result.dropped == {"judgment_repeated": 1, "response_empty": 1, "responses_equal": 1}


def test_the_path_must_be_given(make: Make) -> None:
    with pytest.raises(UserError, match=r"data\.path is not set"):
        load(make, None)


def without(row: dict[str, Any], column: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != column}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (without(PLAIN, "chosen"), "no column 'chosen'"),
        ({**without(PLAIN, "rejected"), "rejcted": "x"}, "no column 'rejected'; did you mean 'rejcted'?"),
        ({**without(PLAIN, "prompt"), "promt": "x"}, "no column 'prompt'; did you mean 'promt'?"),
        (without(PLAIN, "prompt"), "common beginning of chosen and rejected are not read.*extract_prompt"),
        ({**PLAIN, "prompt": 3}, "'prompt' holds '3'; it must be a text or a list of messages"),
        ({**PLAIN, "chosen": None}, "'chosen' holds 'None'"),
        ({**PLAIN, "rejected": {"a": 1}}, "'rejected' holds"),
        ({**PLAIN, "annotator": 1.5}, "'annotator' holds '1.5'; it must be a text"),
        ({**PLAIN, "group": ["a"]}, "'group' holds"),
        ({**PLAIN, "split": "tests"}, "'split' holds 'tests'; did you mean 'test'"),
        ({**PLAIN, "tie": "maybe"}, "'tie' holds 'maybe'; it must be true or false"),
        ({**CHAT, "chosen": []}, "'chosen' holds '\\[\\]'; it must be a list of messages"),
        ({**CHAT, "chosen": ["So."]}, "a message needs 'role' and 'content'"),
        ({**CHAT, "chosen": [{"role": "asistant", "content": "x"}]}, "role 'asistant'; did you mean 'assistant'"),
        ({**CHAT, "chosen": [{"role": "assistant", "content": 3}]}, "content '3'; it must be a text"),
        ({**CHAT, "chosen": CHAT["prompt"]}, "message of the system; it must hold the assistant's response alone"),
        ({**CHAT, "prompt": CHAT["chosen"]}, "'prompt' ends with the assistant's message"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_row(make: Make, write: Write, row: dict[str, Any], message: str) -> None:
    path = write("p.jsonl", [PLAIN, row])
    with pytest.raises(UserError, match=message) as error:
        load(make, path)
    assert str(error.value).startswith(f"{path} line 2: ") and "\n" not in str(error.value)
