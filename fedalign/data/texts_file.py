"""A user's own texts: one row a prompt and its response, perhaps with a response that was rejected."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from fedalign.data.corpus import Corpus, CorpusSource
from fedalign.data.corpus_cells import name_cell, text_cell
from fedalign.data.corpus_rows import GROUP, CorpusRow, corpus_of
from fedalign.data.messages import is_messages, prompt_text, response_text
from fedalign.data.pairs_file import parse_split
from fedalign.data.table import read_table
from fedalign.errors import UserError
from fedalign.rng import Streams


@dataclass(frozen=True)
class TextsFile(CorpusSource):
    """Texts in a local file.

    ========= =========================================================================================
    column    meaning
    ========= =========================================================================================
    prompt    a text, which may be empty, or a conversation: a list of ``{"role": ..., "content": ...}``
    response  how it was continued, or the continuation that was preferred: a text or a list of messages
    rejected  what the response was preferred to; optional
    user      who wrote or judged; optional, but in all rows or in none
    group     what results are reported by; optional, "all" if absent
    split     ``train`` or ``test``; optional, else a hash of the prompt decides
    ========= =========================================================================================

    An optional column may be empty in some rows. Conversations are read from JSON Lines and Parquet. Other columns are
    ignored.

    Parameters
    ----------
    name : str
    path : str or None
        ``.jsonl``, ``.jsonl.gz``, ``.csv`` or ``.parquet``; None is an error that asks for one.
    test_fraction : float
        Share of the prompts that are held out, where no split is given.
    texts_per_user : int
        How many rows an invented user has, where no row has a user.
    """

    name: str
    path: str | None
    test_fraction: Annotated[float, Field(ge=0.0, lt=1.0)]
    texts_per_user: Annotated[int, Field(ge=1)]

    def load(self, streams: Streams) -> Corpus:
        """Read, check and clean the file.

        Raises
        ------
        UserError
            If the file is missing or malformed.
        """
        if self.path is None:
            raise UserError("data.path is not set; give your file of texts, e.g. data.path=texts.jsonl")
        return read_texts_file(Path(self.path), self.test_fraction, self.texts_per_user, streams)


def read_texts_file(path: Path, test_fraction: float, per_user: int, streams: Streams) -> Corpus:
    """Read and clean a file of texts; see ``TextsFile`` for its columns and ``corpus_of`` for the rules.

    Raises
    ------
    UserError
        If the file is missing, lacks a column, holds a value of the wrong type or no usable text.
    """
    return corpus_of(_rows(path), test_fraction, per_user, streams)


def _rows(path: Path) -> Iterator[CorpusRow]:
    for where, record in read_table(path, ("prompt", "response")):
        yield parse_text_row(record, where)


def parse_text_row(record: Mapping[str, object], where: str, text_cells: bool = False) -> CorpusRow:
    """Return one record of a file of texts.

    Parameters
    ----------
    record : mapping from column to cell
    where : str
        Where it stands, for error messages.
    text_cells : bool
        Whether the file is CSV, which holds no conversations; it changes nothing.

    Raises
    ------
    UserError
        If a cell has the wrong type.
    """
    rejected = record.get("rejected")
    return CorpusRow(
        prompt=_prompt(record["prompt"], where),
        response=_response(record["response"], where, "response"),
        # An empty cell is how CSV says that there is none.
        rejected=None if rejected is None or rejected == "" else _response(rejected, where, "rejected"),
        group=name_cell(record.get("group"), where, "group") or GROUP,
        user=name_cell(record.get("user"), where, "user"),
        split=parse_split(record.get("split"), where),
    )


def _prompt(value: object, where: str) -> str:
    if value is None:
        return ""
    return prompt_text(value, where, "prompt") if is_messages(value) else text_cell(value, where, "prompt")


def _response(value: object, where: str, column: str) -> str:
    return response_text(value, where, column) if is_messages(value) else text_cell(value, where, column)
