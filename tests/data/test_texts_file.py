"""A user's own texts in every format, and each thing that can be wrong with them in one line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from fedalign.data.corpus import Corpus, Example
from fedalign.errors import UserError
from fedalign.rng import Streams

Make = Callable[..., Any]
Write = Callable[[str, Sequence[dict[str, Any]]], Path]

PLAIN = {"prompt": "How?", "response": "So."}
FULL = {**PLAIN, "rejected": "No.", "user": "ann", "group": "north", "split": "test"}


def load(make: Make, path: Path | None, **changes: Any) -> Corpus:
    source = make("data/texts_file", path=None if path is None else str(path), **changes)
    result: Corpus = source.load(Streams(0))
    return result


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz", "t.csv", "t.parquet"])
def test_every_format(make: Make, write: Write, name: str) -> None:
    nothing = "" if name.endswith("csv") else None
    other = {**FULL, "prompt": "", "response": 'Ä,\n"b"', "rejected": nothing, "group": nothing, "split": "train"}
    assert load(make, write(name, [FULL, other])).examples == [
        Example("ann", "north", "How?", " So.", " No.", "test"),
        Example("ann", "all", "", 'Ä,\n"b"', None, "train"),
    ]


def test_optional_columns_may_be_absent(make: Make, write: Write) -> None:
    rows = [{**PLAIN, "prompt": f"{i}"} for i in range(5)]
    corpus = load(make, write("t.jsonl", rows), test_fraction=0.0, texts_per_user=2)
    assert sorted(example.user for example in corpus.examples) == [f"user-0000{i}" for i in (1, 1, 2, 2, 3)]
    assert {(e.group, e.rejected, e.split) for e in corpus.examples} == {("all", None, "train")}
    held_out = load(make, write("t.jsonl", rows * 1), test_fraction=0.6).examples
    assert {e.split for e in held_out} == {"train", "test"}


@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet"])
def test_conversations(make: Make, write: Write, name: str) -> None:
    row = {
        "prompt": [{"role": "user", "content": "How?"}],
        "response": [{"role": "assistant", "content": "So."}],
        "rejected": [{"role": "assistant", "content": "No."}],
        "user": "ann",
    }
    expected = Example("ann", "all", "Human: How?\n\nAssistant:", " So.", " No.", "train")
    assert load(make, write(name, [row]), test_fraction=0.0).examples == [expected]


def test_the_path_must_be_given(make: Make) -> None:
    with pytest.raises(UserError, match=r"data\.path is not set; give your file of texts"):
        load(make, None)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a"}, "no column 'response'"),
        ({"promt": "a", "response": "b"}, "no column 'prompt'; did you mean 'promt'?"),
        ({**PLAIN, "prompt": 3}, "'prompt' holds '3'; it must be a text"),
        ({**PLAIN, "response": None}, "'response' holds 'None'"),
        ({**PLAIN, "rejected": 4}, "'rejected' holds '4'"),
        ({**PLAIN, "user": 1.5}, "'user' holds '1.5'; it must be a name or a whole number"),
        ({**PLAIN, "split": "tests"}, "'split' holds 'tests'; did you mean 'test'"),
        ({**PLAIN, "response": [{"role": "user", "content": "x"}]}, "'response' holds a message of the user"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_row(make: Make, write: Write, row: dict[str, Any], message: str) -> None:
    path = write("t.jsonl", [PLAIN, row])
    with pytest.raises(UserError, match=message) as error:
        load(make, path)
    assert str(error.value).startswith(f"{path} line 2: ") and "\n" not in str(error.value)


def test_a_user_in_some_rows_alone_is_refused(make: Make, write: Write) -> None:
    with pytest.raises(UserError, match="1 of 2 records do not say whose they are"):
        load(make, write("t.jsonl", [{**PLAIN, "user": 7}, {**PLAIN, "prompt": "b"}]))
