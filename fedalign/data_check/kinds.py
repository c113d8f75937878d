"""The four kinds of files: their columns, how a row is read, and the loader that a run would use."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedalign.build import build
from fedalign.config import resolve
from fedalign.data.answers import check_options, checked_shares, parse_row
from fedalign.data.federated import DataSource
from fedalign.data.pairs_file import parse_pair_row
from fedalign.data.rankings_file import parse_ranking_row, read_flag
from fedalign.data.schema import Question
from fedalign.data.survey_file import with_lists
from fedalign.data.table import read_table
from fedalign.data.texts_file import parse_text_row
from fedalign.errors import UserError

Cells = Mapping[str, object]


@dataclass(frozen=True)
class FileKind:
    """One kind of file.

    Parameters
    ----------
    name : str
    needed : tuple of str
        Columns that every row has.
    texts : tuple of str
        Columns of texts that people wrote, or lists of them.
    names : tuple of str
        Columns of names of people and groups.
    others : tuple of str
        Further columns that are read.
    parse : callable
        From a row, where it stands and whether lists are written as JSON to what a loader makes of it; raises a
        ``UserError``.
    people : str
        The column that says whose a row is.
    """

    name: str
    needed: tuple[str, ...]
    texts: tuple[str, ...]
    names: tuple[str, ...]
    others: tuple[str, ...]
    parse: Callable[[Cells, str, bool], object]
    people: str

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that are read."""
        return tuple(dict.fromkeys((*self.needed, *self.texts, *self.names, *self.others)))

    def source(self, path: Path) -> Any:
        """Return the source that ``data=<name>_file data.path=...`` would use."""
        return build({**_shipped(f"{self.name}_file"), "path": str(path)}, _SOURCE, "data")


_SOURCE: type = DataSource


@functools.cache
def _shipped(option: str) -> Mapping[str, Any]:
    node: Mapping[str, Any] = resolve([f"data={option}"])["data"]
    return node


def _survey(record: Cells, where: str, text_cells: bool) -> object:
    row = parse_row(with_lists(record, where) if text_cells else record, where, "group")
    checked_shares(row, _shipped("survey_file")["sum_tolerance"])
    check_options(Question(row.question, row.options), where)
    return row


def _ranking(record: Cells, where: str, text_cells: bool) -> object:
    row = parse_ranking_row(record, where, text_cells)
    if read_flag(record.get("probe"), where, "probe") and row.annotator is None:
        raise UserError(f"{where}: 'annotator' is empty in a row of the probe; say who answered")
    return row


KINDS = {
    kind.name: kind
    for kind in (
        FileKind(
            "survey",
            ("group", "question", "options", "distribution"),
            ("question", "options"),
            ("group",),
            (),
            _survey,
            "group",
        ),
        FileKind(
            "pairs",
            ("prompt", "chosen", "rejected"),
            ("prompt", "chosen", "rejected"),
            ("annotator", "group"),
            ("split", "tie"),
            parse_pair_row,
            "annotator",
        ),
        FileKind(
            "rankings",
            ("prompt", "responses", "ranks"),
            ("prompt", "responses"),
            ("annotator", "group"),
            ("split", "probe"),
            _ranking,
            "annotator",
        ),
        FileKind(
            "texts",
            ("prompt", "response"),
            ("prompt", "response", "rejected"),
            ("user", "group"),
            ("split",),
            parse_text_row,
            "user",
        ),
    )
}
"""By name."""


def kind_of(path: Path) -> FileKind:
    """Return the kind that a file's columns are those of.

    Raises
    ------
    UserError
        If the file cannot be read, is empty, or its columns are of no kind.
    """
    first = next(iter(read_table(path, ())), None)
    if first is None:
        raise UserError(f"{path}: holds no rows, so that its kind cannot be told; say it with --kind")
    columns = set(first[1])
    fitting = [kind for kind in KINDS.values() if columns.issuperset(kind.needed)]
    if fitting:
        return fitting[0]
    shares = {kind.name: len(columns.intersection(kind.columns)) for kind in KINDS.values()}
    best = max(shares, key=shares.__getitem__)
    nearest = f"; nearest is {best}, which needs {', '.join(KINDS[best].needed)}" if shares[best] else ""
    shown = ", ".join(sorted(str(column)[:40] for column in columns)[:8])
    raise UserError(f"{path}: its columns ({shown}) are those of no kind of file{nearest}; rename them, or give --kind")
