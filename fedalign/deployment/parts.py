"""Deals a file of judgments to sites, so that each has a file of its own with all that some people or groups said."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedalign.data.table import SUFFIXES, read_table, suffix_of

OWNERS = ("annotator", "user", "group")
"""Columns that say whose a row is, the first that is filled in every row counts."""


def deal(path: Path, places: int, folder: Path) -> list[Path] | None:
    """Write a file's rows into one file a site, in the same format; owners are dealt in turn as they appear.

    Parameters
    ----------
    path : Path
        Table in one of fedalign's formats.
    places : int
        Number of sites.
    folder : Path
        Is given a folder ``0``, ``1``, ... for each site.

    Returns
    -------
    list of Path or None
        None if the file is no table whose rows have owners, or has fewer owners than there are sites.

    Raises
    ------
    UserError
        If the file is missing or damaged.
    """
    if not path.is_file() or not path.name.lower().endswith(SUFFIXES):
        return None
    rows = [record for _, record in read_table(path, ())]
    column = next((name for name in OWNERS if rows and all(row.get(name) not in (None, "") for row in rows)), None)
    if column is None:
        return None
    owners = list(dict.fromkeys(str(row[column]) for row in rows))
    if len(owners) < places:
        return None
    place_of = {owner: number % places for number, owner in enumerate(owners)}
    written = []
    for place in range(places):
        target = folder / str(place) / path.name
        target.parent.mkdir(parents=True)
        _write(target, [row for row in rows if place_of[str(row[column])] == place])
        written.append(target)
    return written


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    suffix = suffix_of(path)
    if suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([dict(row) for row in rows]), path)
    elif suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as opened:
            writer = csv.DictWriter(opened, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(lines) if suffix.endswith(".gz") else lines)
