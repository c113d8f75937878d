"""Reads a table from JSON Lines, CSV or Parquet as records, checking that its columns are there."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from fedalign.data.names import suggest
from fedalign.errors import UserError

Record = tuple[str, Mapping[str, object]]
"""Where a record stands (file and row, for error messages) and its columns."""

SUFFIXES = (".jsonl", ".jsonl.gz", ".csv", ".parquet")
"""File name endings that ``read_table`` knows."""


def suffix_of(path: Path, key: str = "data.path") -> str:
    """Return which of ``SUFFIXES`` the file has; ``key`` is the setting that names it.

    Raises
    ------
    UserError
        If it has none of them.
    """
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix):
            return suffix
    raise UserError(f"{key}={path}: unknown suffix {path.suffix!r}; known: {', '.join(SUFFIXES)}")


def read_table(path: Path, columns: tuple[str, ...]) -> Iterator[Record]:
    """Yield the records of a file whose suffix says its format.

    Parameters
    ----------
    path : Path
        ``.jsonl``, ``.jsonl.gz``, ``.csv`` or ``.parquet``.
    columns : tuple of str
        Columns that every record must have; others are passed on.

    Yields
    ------
    (str, mapping)
        Where the record stands, and its columns. Rows are numbered as an editor numbers lines (JSON Lines),
        or from 1 without the header (CSV, Parquet).

    Raises
    ------
    UserError
        If the file is missing, is not what its suffix says, or lacks a column.
    """
    suffix = suffix_of(path)
    require_file(path)
    try:
        if suffix == ".csv":
            yield from _csv_records(path, columns)
        elif suffix == ".parquet":
            yield from _parquet_records(path, columns)
        else:
            yield from _json_records(path, columns, compressed=suffix.endswith(".gz"))
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise UserError(f"{path}: not a complete gzip file ({error}); fetch it again") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); check the file and its rights") from None


def require_file(path: Path) -> None:
    """Raise a ``UserError`` that suggests a neighbour if ``path`` is not a file."""
    if path.is_file():
        return
    if path.is_dir():
        raise UserError(f"data.path={path}: is a directory; give a file in it")
    if not path.parent.is_dir():
        raise UserError(f"data.path={path}: no such file, and its directory {path.parent} does not exist either")
    neighbours = sorted(entry.name for entry in path.parent.iterdir() if entry.is_file())
    raise UserError(f"data.path={path}: no such file{suggest(path.name, neighbours)}")


def require_columns(present: list[str], columns: tuple[str, ...], where: str) -> None:
    """Raise a ``UserError`` that names the nearest present column if one of ``columns`` is absent."""
    for column in columns:
        if column not in present:
            spare = [name for name in present if name not in columns]
            raise UserError(f"{where}: no column {column!r}{suggest(column, spare)}; needed: {', '.join(columns)}")


def parse_json_cell(value: object, where: str, column: str) -> object:
    """Return a CSV cell's JSON value, e.g. the list in ``["yes", "no"]``; anything but text is returned as it is."""
    if not isinstance(value, str):
        return value
    try:
        found = json.loads(value)
    # Beside what is no JSON: numbers of thousands of digits, and lists in lists in lists.
    except (ValueError, RecursionError):
        raise UserError(
            f'{where}: {column!r} holds {value[:40]!r}; it must be a JSON list such as ["a", "b"]'
        ) from None
    _refuse_half_characters(found, value, where)
    return found


def number_of(value: object) -> float | None:
    """Return a cell's number; None where it holds none, or one that no float can be."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _refuse_half_characters(found: object, text: str, where: str) -> None:
    """Refuse escapes of half a character (a lone surrogate), which no text can be made of."""
    if "\\u" not in text:
        return
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{where}: holds half a character (an escape such as \\ud83d without its other half); write the text anew"
        ) from None


def _json_records(path: Path, columns: tuple[str, ...], compressed: bool) -> Iterator[Record]:
    with gzip.open(path, "rt", encoding="utf-8") if compressed else path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path} line {number}"
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{where}: not JSON ({error.msg}); every line must be one JSON object") from None
            # Numbers of thousands of digits, and lists in lists in lists.
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f"{where}: JSON that cannot be read ({str(error)[:60]}); mend or remove the line"
                ) from None
            if not isinstance(record, dict):
                raise UserError(f"{where}: holds a {type(record).__name__}; every line must be one JSON object")
            require_columns(list(record), columns, where)
            _refuse_half_characters(record, line, where)
            yield where, record


def _csv_records(path: Path, columns: tuple[str, ...]) -> Iterator[Record]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        try:
            require_columns(list(reader.fieldnames or []), columns, str(path))
            for number, record in enumerate(reader, start=1):
                if None in record or None in record.values():
                    raise UserError(
                        f"{path} row {number}: not as many cells as the header has; quote cells that hold commas"
                    )
                yield f"{path} row {number}", record
        except csv.Error as error:
            raise UserError(
                f"{path} line {reader.line_num}: not CSV ({error}); close quotes, and keep very long texts in .jsonl"
            ) from None


def _parquet_records(path: Path, columns: tuple[str, ...]) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path).read()
        names = list(table.column_names)
        require_columns(names, columns, str(path))
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise UserError(f"{path}: two columns are called {twice[0]!r}; rename one")
        records = table.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, TypeError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({(str(error).splitlines() or [''])[0]})") from None
    for number, record in enumerate(records, start=1):
        yield f"{path} row {number}", record
