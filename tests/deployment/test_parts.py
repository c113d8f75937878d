"""Dealing a file to sites: nothing is lost, nothing is doubled, and nobody is on two sites."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from fedalign.data.table import read_table
from fedalign.deployment.parts import deal

ROWS = [
    {"annotator": f"p{i % 5}", "group": f"g{i % 2}", "chosen": f"c{i}", "rejected": "r,é", "note": [i]}
    for i in range(20)
]


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(lines.encode()))
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as opened:
            writer = csv.DictWriter(opened, list(rows[0]))
            writer.writeheader()
            writer.writerows({**row, "note": json.dumps(row["note"])} for row in rows)
    else:
        path.write_text(lines)
    return path


def records(path: Path) -> list[str]:
    return [json.dumps(row, sort_keys=True) for _, row in read_table(path, ())]


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz", "t.csv", "t.parquet"])
def test_every_row_is_on_one_site_and_every_person_too(tmp_path: Path, name: str) -> None:
    whole = write(tmp_path / name, ROWS)
    parts = deal(whole, 3, tmp_path / "parts")
    assert parts is not None
    assert [part.name for part in parts] == [name] * 3
    assert sorted(row for part in parts for row in records(part)) == sorted(records(whole))
    people = [{json.loads(row)["annotator"] for row in records(part)} for part in parts]
    assert people == [{"p0", "p3"}, {"p1", "p4"}, {"p2"}]


def test_where_people_are_not_named_groups_are_dealt(tmp_path: Path) -> None:
    rows = [{**row, "annotator": None if i == 3 else row["annotator"]} for i, row in enumerate(ROWS)]
    parts = deal(write(tmp_path / "t.jsonl", rows), 2, tmp_path / "parts")
    assert parts is not None
    assert [{json.loads(row)["group"] for row in records(part)} for part in parts] == [{"g0"}, {"g1"}]


@pytest.mark.parametrize(
    ("rows", "places"),
    [
        ([{"chosen": "a", "rejected": "b"}], 1),
        (ROWS, 6),
        ([], 2),
    ],
)
def test_what_has_no_owners_or_too_few_is_not_dealt(tmp_path: Path, rows: list[dict[str, object]], places: int) -> None:
    assert deal(write(tmp_path / "t.jsonl", rows), places, tmp_path / "parts") is None
    assert not (tmp_path / "parts").exists()


def test_what_is_no_table_is_not_dealt(tmp_path: Path) -> None:
    (tmp_path / "t.bin").write_bytes(b"\0")
    assert deal(tmp_path / "t.bin", 2, tmp_path / "parts") is None
    assert deal(tmp_path, 2, tmp_path / "parts") is None
