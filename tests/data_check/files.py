"""Files of every kind that are right, and what can be done to a file so that it is not."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Sequence
from typing import Any

import pyarrow
import pyarrow.parquet
from hypothesis import strategies as st

Row = dict[str, Any]

GOOD: dict[str, list[Row]] = {
    "survey": [
        {"group": g, "question": q, "options": ["yes", "no", "Don't know"], "distribution": [a, 1 - a, 0.0]}
        for g, a in (("north", 0.25), ("south", 0.5), ("west", 0.75))
        for q in ("Is it far?", "Is it near?")
    ],
    "pairs": [
        {
            "prompt": f"Ask {n}",
            "chosen": f"Short {n}.",
            "rejected": f"Much longer {n}.",
            "annotator": who,
            "split": split,
        }
        for n, split in ((1, "train"), (2, "train"), (3, "test"))
        for who in ("a1", "a2")
    ],
    "rankings": [
        {"prompt": f"Menu {n}", "responses": ["x", "y", "z"], "ranks": [1, 2, None], "annotator": who, "group": "g"}
        for n in range(3)
        for who in ("a1", "a2")
    ],
    "texts": [
        {"prompt": f"Say {n}", "response": f"words {n}", "rejected": f"other {n}", "user": f"u{n % 2}", "split": split}
        for n, split in enumerate(("train", "train", "test", "train"))
    ],
}
"""By kind."""

SUFFIXES = (".jsonl", ".csv", ".jsonl.gz", ".parquet")

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from(
        [10**400, -(10**30), float("nan"), float("inf"), 1e308, 0.1, "", " ", "\x00", "\ufeff", "true", "7"]
    ),
    st.text(max_size=6),
    st.sampled_from(
        ["\ud83d", "train", "tset", "[1, 2]", '[{"role": "user", "content": "hi"}]', "[" * 2000, "a" * 200_000]
    ),
    st.lists(st.one_of(st.none(), st.text(max_size=3), st.floats(), st.integers(-2, 9)), max_size=4),
    st.lists(
        st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "x"]), "content": st.text(max_size=3)})
    ),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
"""What may stand in a cell that should hold something else."""


def content_of(rows: Sequence[Row], suffix: str) -> bytes | None:
    """Return a file's bytes; None where its format cannot hold the rows."""
    if suffix == ".csv":
        text = io.StringIO(newline="")
        columns = list(dict.fromkeys(column for row in rows for column in row))
        writer = csv.DictWriter(text, columns)
        try:
            writer.writeheader()
            writer.writerows(
                {k: json.dumps(v) if isinstance(v, (list, dict)) else v for k, v in row.items()} for row in rows
            )
            return text.getvalue().encode()
        except (csv.Error, UnicodeEncodeError, ValueError):
            return None
    if suffix == ".parquet":
        sink = io.BytesIO()
        try:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), sink)
        except (pyarrow.ArrowException, OverflowError, ValueError, TypeError):
            return None
        return sink.getvalue()
    try:
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    except ValueError:
        return None
    return gzip.compress(lines) if suffix.endswith(".gz") else lines


@st.composite
def mutated_rows(draw: st.DrawFn, kind: str) -> list[Row]:
    """Rows of a kind, some of them changed, repeated or without a cell."""
    rows = [dict(row) for row in GOOD[kind]]
    for _ in range(draw(st.integers(0, 3))):
        if not rows:
            break
        row = draw(st.sampled_from(rows))
        what = draw(st.sampled_from(["cell", "cell", "cell", "drop", "repeat", "remove", "rename"]))
        column = draw(st.sampled_from([*row, "probe", "tie"])) if row else "prompt"
        if what == "cell":
            row[column] = draw(JUNK)
        elif what == "drop":
            row.pop(column, None)
        elif what == "rename" and column in row:
            row[f"{column}s"] = row.pop(column)
        elif what == "repeat":
            rows.append({**row, column: draw(JUNK)})
        else:
            rows.remove(row)
    return rows


@st.composite
def mutated_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes with a few of them changed, put in, taken out or cut off."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        what = draw(st.sampled_from(["flip", "insert", "delete", "cut"]))
        if what == "flip" and data:
            data[place] = draw(st.integers(0, 255))
        elif what == "insert":
            data[place:place] = draw(st.binary(min_size=1, max_size=4))
        elif what == "delete":
            del data[place : place + draw(st.integers(1, 8))]
        else:
            del data[place:]
    return bytes(data)


@st.composite
def mutated_files(draw: st.DrawFn) -> tuple[str, str, bytes]:
    """A kind, a suffix, and a file's bytes that may be anything."""
    kind, suffix = draw(st.sampled_from(list(GOOD))), draw(st.sampled_from(SUFFIXES))
    content = content_of(draw(mutated_rows(kind)), suffix)
    if content is None:
        content = content_of(GOOD[kind], suffix) or b""
    return kind, suffix, draw(mutated_bytes(content)) if draw(st.booleans()) else content
