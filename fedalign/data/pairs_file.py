"""A user's own pairs: one row a judgment, in TRL's column names prompt, chosen, rejected, and a few optional ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, cast

from pydantic import Field

from fedalign.data.messages import is_messages, prompt_text, response_text
from fedalign.data.names import suggest
from fedalign.data.pair_rows import PairRow, Ties, clean_pairs
from fedalign.data.pairs import PairSet, PairSource, Split
from fedalign.data.table import parse_json_cell, read_table, require_columns, suffix_of
from fedalign.errors import UserError
from fedalign.rng import Streams

GROUP = "all"
"""Group of the judgments of a file that names none."""

_SPLITS = ("train", "test")
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True)
class PairsFile(PairSource):
    """Pairs in a local file.

    ================= ==================================================================================
    column            meaning
    ================= ==================================================================================
    prompt            a text, or a conversation: a list of ``{"role": ..., "content": ...}``
    chosen, rejected  the two responses, each a text or a list of the assistant's messages
    annotator         who judged; optional
    group             category of the judgment; optional, "all" if absent
    split             ``train`` or ``test``; optional, else a hash of the prompt decides
    tie               true if neither response was preferred; optional
    ================= ==================================================================================

    An optional column may be empty in some rows. In CSV a conversation is written as JSON. Other columns are ignored.

    Parameters
    ----------
    name : str
    path : str or None
        ``.jsonl``, ``.jsonl.gz``, ``.csv`` or ``.parquet``; None is an error that asks for one.
    prompt_tail : int
        How many characters of a prompt's end the encoder reads.
    test_fraction : float
        Share of the prompts whose judgments are held out, where no split is given.
    ties : "keep" or "drop"
        What happens to judgments without a preference.
    """

    name: str
    path: str | None
    prompt_tail: Annotated[int, Field(ge=1)]
    test_fraction: Annotated[float, Field(ge=0.0, lt=1.0)]
    ties: Ties

    def load(self, streams: Streams) -> PairSet:
        """Read, check and clean the file; draws nothing from ``streams``.

        Raises
        ------
        UserError
            If the file is missing or malformed.
        """
        if self.path is None:
            raise UserError("data.path is not set; give your file of pairs, e.g. data.path=pairs.jsonl")
        return read_pairs_file(Path(self.path), self.test_fraction, self.ties)


def read_pairs_file(path: Path, test_fraction: float, ties: Ties) -> PairSet:
    """Read and clean a file of pairs; see ``PairsFile`` for its columns and ``clean_pairs`` for the rules.

    Raises
    ------
    UserError
        If the file is missing, lacks a column, holds a value of the wrong type or no usable pair.
    """
    return clean_pairs(_rows(path), test_fraction, ties)


def _rows(path: Path) -> Iterator[PairRow]:
    text_cells = suffix_of(path) == ".csv"
    for where, record in read_table(path, ("chosen", "rejected")):
        yield parse_pair_row(record, where, text_cells)


def parse_pair_row(record: Mapping[str, object], where: str, text_cells: bool) -> PairRow:
    """Return one record of a pairs file.

    Parameters
    ----------
    record : mapping from column to cell
    where : str
        Where it stands, for error messages.
    text_cells : bool
        Whether conversations are written as JSON, as in CSV.

    Raises
    ------
    UserError
        If the prompt is missing or a cell has the wrong type.
    """
    if "prompt" not in record:
        _refuse_implicit_prompt(record, where)
    if text_cells:
        record = {**record, **{key: _parsed(record[key], where, key) for key in ("prompt", "chosen", "rejected")}}
    return PairRow(
        prompt=_prompt(record["prompt"], where),
        chosen=_response(record["chosen"], where, "chosen"),
        rejected=_response(record["rejected"], where, "rejected"),
        group=_name(record.get("group"), where, "group") or GROUP,
        annotator=_name(record.get("annotator"), where, "annotator"),
        split=parse_split(record.get("split"), where),
        tie=_tie(record.get("tie"), where),
    )


def _refuse_implicit_prompt(record: Mapping[str, object], where: str) -> None:
    """Raise the error for a record without a prompt: a misspelt column, or TRL's form with the prompt in both texts."""
    spare = [name for name in record if name not in ("chosen", "rejected")]
    if spare:
        require_columns(list(record), ("prompt", "chosen", "rejected"), where)
    raise UserError(
        f"{where}: no column 'prompt'; pairs whose prompt is the common beginning of chosen and rejected are not read: "
        "write it into a column 'prompt' (TRL's extract_prompt does that)"
    )


def _parsed(value: object, where: str, column: str) -> object:
    """Return a CSV cell: the list if it is written as a conversation, else the text."""
    if isinstance(value, str) and value.lstrip().startswith('[{"'):
        return parse_json_cell(value, where, column)
    return value


def _prompt(value: object, where: str) -> str:
    return prompt_text(value, where, "prompt") if is_messages(value) else _text(value, where, "prompt")


def _response(value: object, where: str, column: str) -> str:
    return response_text(value, where, column) if is_messages(value) else _text(value, where, column)


def _text(value: object, where: str, column: str) -> str:
    if not isinstance(value, str):
        raise UserError(
            f"{where}: {column!r} holds {str(value)[:40]!r}; it must be a text or a list of messages "
            'such as [{"role": "user", "content": "..."}]'
        )
    return value


def _name(value: object, where: str, column: str) -> str | None:
    """Return a name, or None for an empty cell; whole numbers are names too."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise UserError(f"{where}: {column!r} holds {str(value)[:40]!r}; it must be a text")
    return str(value)


def parse_split(value: object, where: str) -> Split | None:
    """Return a cell of the column ``split``; None if it is empty.

    Raises
    ------
    UserError
        If it is neither ``train`` nor ``test``.
    """
    name = _name(value, where, "split")
    if name is not None and name not in _SPLITS:
        raise UserError(f"{where}: 'split' holds {name!r}{suggest(name, _SPLITS)}")
    return cast(Literal["train", "test"] | None, name)


def _tie(value: object, where: str) -> bool:
    if value is None or value == "":
        return False
    known = value if isinstance(value, bool) else _BOOLEANS.get(str(value).strip().casefold())
    if known is None:
        raise UserError(f"{where}: 'tie' holds {str(value)[:40]!r}; it must be true or false")
    return known
