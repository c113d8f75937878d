"""A user's own survey file: one row a group and question, with the columns group, question, options, distribution."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from fedalign.data.answers import AnswerRow, build_survey, parse_row
from fedalign.data.cleaning import Cleaning
from fedalign.data.schema import Survey, SurveySource
from fedalign.data.table import parse_json_cell, read_table, suffix_of
from fedalign.errors import UserError
from fedalign.rng import Streams


@dataclass(frozen=True)
class SurveyFile(SurveySource):
    """A survey in a local file.

    ============== ==================================================================================
    column         meaning
    ============== ==================================================================================
    group          who answered; any text
    question       the question's text
    options        list of two or more different texts
    distribution   list of shares, one an option, summing to 1
    ============== ==================================================================================

    In CSV the two lists are written as JSON, e.g. ``["yes", "no"]``. Other columns are ignored.

    Parameters
    ----------
    name : str
    path : str or None
        ``.jsonl``, ``.jsonl.gz``, ``.csv`` or ``.parquet``; None is an error that asks for one.
    sum_tolerance : float
        How far a distribution's sum may be from 1; it is then renormalised exactly.
    cleaning : Cleaning
        Rules for survey artefacts.
    """

    name: str
    path: str | None
    sum_tolerance: Annotated[float, Field(ge=0.0, lt=1.0)]
    cleaning: Cleaning

    def load(self, streams: Streams) -> Survey:
        """Read, check and clean the file; draws nothing from ``streams``.

        Raises
        ------
        UserError
            If the file is missing or malformed.
        """
        if self.path is None:
            raise UserError("data.path is not set; give your survey file, e.g. data.path=survey.jsonl")
        return read_survey_file(Path(self.path), self.cleaning, self.sum_tolerance)


def read_survey_file(path: Path, cleaning: Cleaning | None = None, sum_tolerance: float = 1e-3) -> Survey:
    """Read a survey file; without ``cleaning`` nothing is removed.

    Raises
    ------
    UserError
        If the file is missing or malformed.
    """
    untouched = Cleaning(whitespace=False, totals=False, refusals=False, missing=False, min_mass=1.0)
    return build_survey(survey_rows(path, "group"), cleaning or untouched, sum_tolerance, repeats="error")


def survey_rows(path: Path, group_column: str) -> Iterator[AnswerRow]:
    """Yield the rows of a survey file whose column ``group_column`` names the group.

    Raises
    ------
    UserError
        If the file is missing, lacks a column or holds a value of the wrong type.
    """
    text_cells = suffix_of(path) == ".csv"
    for where, record in read_table(path, (group_column, "question", "options", "distribution")):
        yield parse_row(with_lists(record, where) if text_cells else record, where, group_column)


def with_lists(record: Mapping[str, object], where: str) -> dict[str, object]:
    """Return a row of a CSV file with its two lists read.

    Raises
    ------
    UserError
        If one is not JSON.
    """
    return {**record, **{key: parse_json_cell(record[key], where, key) for key in ("options", "distribution")}}
