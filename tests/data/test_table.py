"""Tables read the same from every format, and a file that cannot be read ends in one line."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from fedalign.data.table import parse_json_cell, read_table, suffix_of
from fedalign.errors import UserError

Write = Callable[[str, Sequence[dict[str, Any]]], Path]

ROWS = [{"a": "x, \u00e9", "b": [0.25, 1.0]}, {"a": 'say "y"', "b": [2.0]}]


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz", "t.parquet", "T.JSONL"])
def test_records_come_back_in_order(write: Write, name: str) -> None:
    assert [dict(record) for _, record in read_table(write(name, ROWS), ("a", "b"))] == ROWS


def test_csv_cells_are_text(write: Write) -> None:
    records = [dict(record) for _, record in read_table(write("t.csv", ROWS), ("a",))]
    assert records == [{"a": "x, \u00e9", "b": "[0.25, 1.0]"}, {"a": 'say "y"', "b": "[2.0]"}]


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    path = tmp_path / "excel.csv"
    path.write_bytes(b"\xef\xbb\xbfa,b\n1,2\n")
    assert [dict(record) for _, record in read_table(path, ("a", "b"))] == [{"a": "1", "b": "2"}]


def test_rows_are_numbered_for_error_messages(write: Write, tmp_path: Path) -> None:
    gap = tmp_path / "gap.jsonl"
    gap.write_text('{"a": 1}\n\n{"a": 2}\n')
    assert [where for where, _ in read_table(gap, ("a",))] == [f"{gap} line 1", f"{gap} line 3"]
    table = write("t.csv", ROWS)
    assert [where for where, _ in read_table(table, ("a",))] == [f"{table} row 1", f"{table} row 2"]


@pytest.mark.parametrize("name", ["t.jsonl", "t.csv", "t.parquet"])
def test_a_missing_column_names_the_nearest(write: Write, name: str) -> None:
    path = write(name, [{"quesion": "Q?", "other": 1}])
    with pytest.raises(UserError, match=r"no column 'question'; did you mean 'quesion'\?"):
        list(read_table(path, ("question",)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", b'{"a": 1}\n{"a": \n', "line 2: not JSON"),
        ("t.jsonl", b"[1, 2]\n", "line 1: holds a list"),
        ("t.jsonl", b'{"a": "\xff"}\n', "not UTF-8"),
        ("t.csv", b"a,b\n1\n", "row 1: not as many cells"),
        ("t.csv", b"a,b\n1,2,3\n", "row 1: not as many cells"),
        ("t.csv", b"", "no column 'a'"),
        ("t.parquet", b"not parquet", "not a readable Parquet file"),
        ("t.jsonl.gz", b"not gzip", "not a complete gzip file"),
        ("t.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 9, mtime=0)[:-9], "not a complete gzip file"),
    ],
)
def test_a_broken_file_ends_in_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        list(read_table(path, ("a",)))
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_names_a_neighbour(write: Write, tmp_path: Path) -> None:
    write("survey.jsonl", ROWS)
    with pytest.raises(UserError, match=r"no such file; did you mean 'survey.jsonl'\?"):
        list(read_table(tmp_path / "survy.jsonl", ()))
    with pytest.raises(UserError, match=r"directory .* does not exist"):
        list(read_table(tmp_path / "no" / "survey.jsonl", ()))


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    folder = tmp_path / "folder.csv"
    folder.mkdir()
    with pytest.raises(UserError, match="is a directory"):
        list(read_table(folder, ()))


def test_an_unknown_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown suffix '.xlsx'; known: .jsonl"):
        suffix_of(tmp_path / "survey.xlsx")


def test_json_cells() -> None:
    assert parse_json_cell('["a", 1]', "t row 1", "options") == ["a", 1]
    assert parse_json_cell([1], "t row 1", "options") == [1]
    with pytest.raises(UserError, match="t row 1: 'options' holds 'a;b'; it must be a JSON list"):
        parse_json_cell("a;b", "t row 1", "options")
