"""The check of a file, top to bottom: rows, columns, the loader itself, what it made of them, what would leave."""

from __future__ import annotations

from pathlib import Path

from fedalign.data.names import suggest
from fedalign.data.table import read_table, suffix_of
from fedalign.data_check.columns import check_columns, lengths
from fedalign.data_check.contents import check_contents
from fedalign.data_check.encoding import check_encoding
from fedalign.data_check.findings import CheckReport, Finding
from fedalign.data_check.kinds import KINDS, Cells, FileKind, kind_of
from fedalign.data_check.leaving import what_leaves, what_stays
from fedalign.errors import UserError
from fedalign.rng import Streams

MOST_ERRORS = 20
"""How many malformed rows are named."""


def check_file(path: Path, kind: str | None = None, encoder: str = "none") -> CheckReport:
    """Return what there is to know of a file before it is used.

    A report has an error if and only if the loader of ``data=<kind>_file`` refuses the file.

    Parameters
    ----------
    path : Path
    kind : {"survey", "pairs", "rankings", "texts"} or None
        None tells it by the columns.
    encoder : str
        An option of the group ``encoder`` that the texts are tried with; ``none`` tries none.

    Raises
    ------
    UserError
        If the file cannot be read at all, its kind cannot be told, or there is no such kind or encoder.
    """
    if kind is not None and kind not in KINDS:
        raise UserError(f"--kind={kind}: no such kind{suggest(kind, KINDS)}")
    chosen = kind_of(path) if kind is None else KINDS[kind]
    report = CheckReport(str(path), chosen.name, leaves=what_leaves(chosen.name), stays=what_stays(chosen.name))
    rows, errors = _read(chosen, path)
    report.rows = len(rows)
    report.sizes.update(lengths(chosen, rows))
    report.findings.extend(check_columns(chosen, rows))
    try:
        loaded = chosen.source(path).load(Streams(0))
    except UserError as error:
        if str(error) not in {known.message for known in errors}:
            errors.append(Finding("error", "refused", str(error)))
        report.findings[:0] = errors
        return report
    report.findings[:0] = errors
    check_contents(report, loaded)
    if encoder != "none":
        report.findings.extend(check_encoding(chosen.name, loaded, encoder))
    return report


def _read(kind: FileKind, path: Path) -> tuple[list[tuple[str, Cells]], list[Finding]]:
    """Return the rows of a file as they are, up to where it cannot be read, and the first that a loader refuses."""
    rows: list[tuple[str, Cells]] = []
    errors: list[Finding] = []
    try:
        text_cells = suffix_of(path) == ".csv"
        for where, record in read_table(path, kind.needed):
            rows.append((where, record))
            if len(errors) < MOST_ERRORS:
                try:
                    kind.parse(record, where, text_cells)
                except UserError as error:
                    errors.append(Finding("error", "row", str(error), 1, (where,)))
    except UserError as error:
        errors.append(Finding("error", "file", str(error)))
    return rows, errors
