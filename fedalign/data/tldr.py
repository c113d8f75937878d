"""TL;DR: posts of a forum, and workers' choices between two summaries of a post.

Stiennon et al. 2020, "Learning to summarize from human feedback".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from fedalign.data.corpus import Corpus, CorpusSource, Split
from fedalign.data.corpus_cells import name_cell, text_cell
from fedalign.data.corpus_files import table_in
from fedalign.data.corpus_rows import GROUP, CorpusRow, corpus_of
from fedalign.data.table import read_table
from fedalign.errors import UserError
from fedalign.hub import dataset_file
from fedalign.rng import Streams

HUB_NAME = "openai/summarize_from_feedback"
HUB_REVISION = "refs/convert/parquet"
HUB_FILE = "comparisons/{split}/0000.parquet"
"""What the hub made of the published files, which it cannot serve row by row."""

_TABLES: Mapping[str, Split] = {"train": "train", "validation": "test"}
_PARTS = (("SUBREDDIT: r/", "subreddit"), ("TITLE: ", "title"), ("POST: ", "post"))


@dataclass(frozen=True)
class TLDR(CorpusSource):
    """Comparisons of summaries; the user is the worker who chose.

    A record has ``info`` (a post's ``subreddit``, ``title`` and ``post``), two ``summaries`` with a ``text`` each, the
    ``choice`` (0 or 1) and the ``worker``. In a single file ``split`` says where it belongs: ``train``, or anything
    that begins with ``valid`` or ``test``. Counted beside what ``corpus_of`` drops: ``not_a_post``, comparisons of
    summaries of news articles.

    Parameters
    ----------
    name : str
    path : str or None
        None takes the hub's files (or their cache); else a folder with the tables ``train`` and ``validation``, or one
        file.
    comparisons_per_user : int
        How many comparisons an invented user has, in data without workers.
    """

    name: str
    path: str | None
    comparisons_per_user: Annotated[int, Field(ge=1)]

    def load(self, streams: Streams) -> Corpus:
        """Read and clean the comparisons.

        Raises
        ------
        UserError
            If a file is missing or malformed, or the hub is out of reach.
        """
        counts: Counter[str] = Counter()
        return corpus_of(self._rows(counts), 0.0, self.comparisons_per_user, streams, counts)

    def _rows(self, counts: Counter[str]) -> Iterator[CorpusRow]:
        path = None if self.path is None else Path(self.path)
        if path is not None and not path.is_dir():
            for where, record in read_table(path, ("info", "summaries", "choice", "split")):
                yield from _row(record, where, _split(record["split"], where), counts)
            return
        for name, split in _TABLES.items():
            file = HUB_FILE.format(split=name)
            table = dataset_file(HUB_NAME, file, HUB_REVISION) if path is None else table_in(path, (name, file))
            for where, record in read_table(table, ("info", "summaries", "choice")):
                yield from _row(record, where, split, counts)


def _row(record: Mapping[str, object], where: str, split: Split, counts: Counter[str]) -> Iterator[CorpusRow]:
    """Yield a record's comparison, or count why there is none."""
    info = record["info"]
    if not isinstance(info, Mapping):
        raise UserError(
            f"{where}: 'info' holds {str(info)[:40]!r}; it must be an object with subreddit, title and post"
        )
    if info.get("post") is None:
        counts["not_a_post"] += 1
        return
    parts = [f"{title}{text_cell(info.get(key), where, f'info.{key}').strip()}" for title, key in _PARTS]
    choice = record["choice"]
    if isinstance(choice, bool) or choice not in (0, 1):
        raise UserError(f"{where}: 'choice' holds {str(choice)[:40]!r}; it must be 0 or 1, the preferred summary")
    first, second = _summaries(record["summaries"], where)
    response, rejected = (second, first) if choice else (first, second)
    prompt = "\n\n".join([*parts, "TL;DR:"])
    yield CorpusRow(prompt, response, rejected, GROUP, name_cell(record.get("worker"), where, "worker"), split)


def _summaries(value: object, where: str) -> tuple[str, str]:
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(entry, Mapping) for entry in value):
        raise UserError(f"{where}: 'summaries' holds {str(value)[:40]!r}; it must be a list of two objects with a text")
    first, second = (text_cell(entry.get("text"), where, "summaries.text") for entry in value)
    return first, second


def _split(value: object, where: str) -> Split:
    name = text_cell(value, where, "split")
    if name == "train":
        return "train"
    if name.startswith(("valid", "test")):
        return "test"
    raise UserError(f"{where}: 'split' holds {name!r}; it must be train, or begin with valid or test")
