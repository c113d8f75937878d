"""IMDb reviews and what people made of them by turning the sentiment round: ready pairs, the positive one preferred.

Kaushik, Hovy and Lipton 2020, "Learning the difference that makes a difference with counterfactually-augmented data".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from fedalign.data.corpus import Corpus, CorpusSource, Split
from fedalign.data.corpus_cells import text_cell
from fedalign.data.corpus_files import table_in
from fedalign.data.corpus_rows import GROUP, CorpusRow, corpus_of
from fedalign.data.imdb import plain_text
from fedalign.data.table import read_table
from fedalign.errors import UserError
from fedalign.rng import Streams

_SPLIT_OF: dict[str, Split] = {"train": "train", "dev": "train", "test": "test"}


@dataclass(frozen=True)
class IMDBPairs(CorpusSource):
    """Pairs from a folder with the tables ``train``, ``dev`` and ``test``; each has columns ``positive``, ``negative``.

    The prompt is the common beginning of the two; it is empty where they differ from the first word on. What is
    published as ``dev`` is trained on. Pairs are dealt to users that are made up.

    Parameters
    ----------
    name : str
    path : str or None
        The folder; None is an error that asks for one.
    pairs_per_user : int
        How many pairs a user has.
    max_prompt_words : int
        Most words of a prompt.
    response_words : int
        Most words of a response.
    """

    name: str
    path: str | None
    pairs_per_user: Annotated[int, Field(ge=1)]
    max_prompt_words: Annotated[int, Field(ge=0)]
    response_words: Annotated[int, Field(ge=1)]

    def load(self, streams: Streams) -> Corpus:
        """Read the pairs and cut each into a prompt and two responses.

        Raises
        ------
        UserError
            If a table is missing or malformed.
        """
        if self.path is None:
            raise UserError("data.path is not set; give the folder with train.jsonl.gz, dev.jsonl.gz and test.jsonl.gz")
        folder = Path(self.path)
        rows = [row for table, split in _SPLIT_OF.items() for row in self._rows(table_in(folder, (table,)), split)]
        return corpus_of(rows, 0.0, self.pairs_per_user, streams)

    def _rows(self, path: Path, split: Split) -> Iterator[CorpusRow]:
        for where, record in read_table(path, ("positive", "negative")):
            better, worse = (
                plain_text(text_cell(record[column], where, column)).split() for column in ("positive", "negative")
            )
            start = common_beginning(better, worse, self.max_prompt_words)
            end = start + self.response_words
            prompt, response, rejected = (
                " ".join(words) for words in (better[:start], better[start:end], worse[start:end])
            )
            yield CorpusRow(prompt, response, rejected, GROUP, split=split)


def common_beginning(first: Sequence[str], second: Sequence[str], most: int) -> int:
    """Return with how many of the same words two texts begin, at most ``most``."""
    for i, (a, b) in enumerate(zip(first[:most], second[:most], strict=False)):
        if a != b:
            return i
    return min(len(first), len(second), most)
