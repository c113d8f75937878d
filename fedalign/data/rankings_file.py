"""A user's own rankings: one row a judgment of two or more responses, or an annotator's answer to a public probe."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from fedalign.data.corpus_cells import name_cell, text_cell
from fedalign.data.messages import is_messages, prompt_text, response_text
from fedalign.data.pairs_file import parse_split
from fedalign.data.ranking_probe import ProbeAnswer, with_probe
from fedalign.data.ranking_rows import GROUP, RankingRow, clean_rankings
from fedalign.data.rankings import Menu, RankingSet, RankingSource
from fedalign.data.table import number_of, parse_json_cell, read_table, suffix_of
from fedalign.errors import UserError
from fedalign.rng import Streams

COLUMNS = ("prompt", "responses", "ranks")
"""What every row must have."""

_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True)
class RankingsFile(RankingSource):
    """Rankings in a local file.

    ========= ======================================================================================
    column    meaning
    ========= ======================================================================================
    prompt    a text, or a conversation: a list of ``{"role": ..., "content": ...}``
    responses list of two or more responses, each a text or a list of the assistant's messages
    ranks     list of as many numbers: less is better, equal is a tie, null is not ranked
    annotator who judged; optional, but needed by ``partition=annotators`` and in rows of the probe
    group     what results are reported by; optional, "all" if absent
    split     ``train`` or ``test``; optional, else a hash of the prompt decides
    probe     true if the row answers the public probe and is no judgment; optional
    ========= ======================================================================================

    An optional column may be empty in some rows. In CSV lists are written as JSON. Other columns are ignored.

    Parameters
    ----------
    name : str
    path : str or None
        ``.jsonl``, ``.jsonl.gz``, ``.csv`` or ``.parquet``; None is an error that asks for one.
    prompt_tail : int
        How many characters of a prompt's end the encoder reads.
    test_fraction : float
        Share of the prompts whose judgments are held out, where no split is given.
    """

    name: str
    path: str | None
    prompt_tail: Annotated[int, Field(ge=1)]
    test_fraction: Annotated[float, Field(ge=0.0, lt=1.0)]

    def load(self, streams: Streams) -> RankingSet:
        """Read, check and clean the file; draws nothing from ``streams``.

        Raises
        ------
        UserError
            If the file is missing or malformed, or annotators answered different probes.
        """
        if self.path is None:
            raise UserError("data.path is not set; give your file of rankings, e.g. data.path=rankings.jsonl")
        return read_rankings_file(Path(self.path), self.test_fraction)


def read_rankings_file(path: Path, test_fraction: float) -> RankingSet:
    """Read and clean a file of rankings; see ``RankingsFile`` for its columns and ``clean_rankings`` for the rules.

    Raises
    ------
    UserError
        If the file is missing, lacks a column, holds a value of the wrong type or no usable ranking, or its
        annotators answered different probes.
    """
    answers: list[ProbeAnswer] = []
    return with_probe(clean_rankings(_judgments(path, answers), test_fraction), answers)


def _judgments(path: Path, answers: list[ProbeAnswer]) -> Iterator[RankingRow]:
    """Yield the judgments of a file, and add its answers to the probe to ``answers``."""
    text_cells = suffix_of(path) == ".csv"
    for where, record in read_table(path, COLUMNS):
        row = parse_ranking_row(record, where, text_cells)
        if not read_flag(record.get("probe"), where, "probe"):
            yield row
        elif row.annotator is None:
            raise UserError(f"{where}: 'annotator' is empty in a row of the probe; say who answered")
        else:
            answers.append(ProbeAnswer(where, row.annotator, Menu(row.prompt, row.responses), row.ranks))


def parse_ranking_row(record: Mapping[str, object], where: str, text_cells: bool) -> RankingRow:
    """Return one record of a rankings file.

    Parameters
    ----------
    record : mapping from column to cell
    where : str
        Where it stands, for error messages.
    text_cells : bool
        Whether lists are written as JSON, as in CSV.

    Raises
    ------
    UserError
        If a cell has the wrong type, or ranks are not one for each response.
    """
    if text_cells:
        record = {**record, **{key: _parsed(record[key], where, key) for key in COLUMNS}}
    responses = _responses(record["responses"], where)
    return RankingRow(
        prompt=_prompt(record["prompt"], where),
        responses=responses,
        ranks=_ranks(record["ranks"], where, len(responses)),
        group=name_cell(record.get("group"), where, "group") or GROUP,
        annotator=name_cell(record.get("annotator"), where, "annotator"),
        split=parse_split(record.get("split"), where),
    )


def _parsed(value: object, where: str, column: str) -> object:
    """Return a CSV cell: the list that it is written as, or a prompt's text."""
    if column == "prompt" and isinstance(value, str) and not value.lstrip().startswith('[{"'):
        return value
    return parse_json_cell(value, where, column)


def _prompt(value: object, where: str) -> str:
    return prompt_text(value, where, "prompt") if is_messages(value) else text_cell(value, where, "prompt")


def _responses(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)):
        raise UserError(
            f"{where}: 'responses' holds {str(value)[:40]!r}; it must be a list of two or more responses such as "
            '["yes", "no"]'
        )
    if len(value) < 2:
        raise UserError(f"{where}: 'responses' holds {len(value)} of them; a judgment needs two: remove the row")
    return tuple(
        response_text(cell, where, "responses") if is_messages(cell) else text_cell(cell, where, "responses")
        for cell in value
    )


def _ranks(value: object, where: str, count: int) -> tuple[float | None, ...]:
    if not isinstance(value, (list, tuple)):
        raise UserError(
            f"{where}: 'ranks' holds {str(value)[:40]!r}; it must be a list with a number for each response such as "
            "[1, 2], null where a response was not ranked"
        )
    if len(value) != count:
        raise UserError(f"{where}: 'ranks' holds {len(value)} ranks for {count} responses; give one for each, or null")
    return tuple(_rank(rank, where) for rank in value)


def _rank(value: object, where: str) -> float | None:
    if value is None:
        return None
    number = number_of(value)
    if number is None or not math.isfinite(number):
        raise UserError(
            f"{where}: 'ranks' holds {str(value)[:40]!r}; a rank must be a number (1 is best, equal ones tie), or null"
        )
    return number


def read_flag(value: object, where: str, column: str) -> bool:
    """Return a cell that is true or false; an empty one is false.

    Raises
    ------
    UserError
        If it is neither.
    """
    if value is None or value == "":
        return False
    known = value if isinstance(value, bool) else _BOOLEANS.get(str(value).strip().casefold())
    if known is None:
        raise UserError(f"{where}: {column!r} holds {str(value)[:40]!r}; it must be true or false")
    return known
