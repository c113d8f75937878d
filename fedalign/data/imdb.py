"""IMDb film reviews as texts: a review's first words are a prompt, and its author went on with the rest.

Maas et al. 2011, "Learning word vectors for sentiment analysis".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from fedalign.data.corpus import Corpus, CorpusSource, Split
from fedalign.data.corpus_cells import text_cell
from fedalign.data.corpus_files import table_in
from fedalign.data.corpus_rows import GROUP, CorpusRow, corpus_of
from fedalign.data.table import read_table
from fedalign.errors import UserError
from fedalign.hub import dataset_file
from fedalign.rng import Streams

HUB_NAME = "stanfordnlp/imdb"
HUB_FILE = "plain_text/{split}-00000-of-00001.parquet"

_LINE_BREAK = re.compile(r"<br\s*/?>")


@dataclass(frozen=True)
class IMDB(CorpusSource):
    """Reviews from the hub, or from a folder with a table ``train`` and a table ``test`` that have a column ``text``.

    The data do not say who wrote a review, so reviews are dealt to users that are made up. Counted beside what
    ``corpus_of`` drops (``in_test`` counts whole reviews here):

    =============== =====================================================
    count           what was dropped
    =============== =====================================================
    review_short    reviews with fewer than ``min_words`` words
    review_repeated the same review a second time in the same split
    =============== =====================================================

    Parameters
    ----------
    name : str
    path : str or None
        None takes the published files from the hub (or its cache); else the folder.
    reviews_per_user : int
        How many reviews a user has.
    min_prompt_words, max_prompt_words : int
        A prompt has from the one to the other, all equally likely.
    response_words : int
        Most words of a response.
    min_words : int
        Fewest words of a review.
    test_examples : int or None
        How many reviews of the test split are used, drawn at random; None takes all.
    """

    name: str
    path: str | None
    reviews_per_user: Annotated[int, Field(ge=1)]
    min_prompt_words: Annotated[int, Field(ge=1)]
    max_prompt_words: Annotated[int, Field(ge=1)]
    response_words: Annotated[int, Field(ge=1)]
    min_words: Annotated[int, Field(ge=2)]
    test_examples: Annotated[int, Field(ge=0)] | None

    def __post_init__(self) -> None:
        if self.max_prompt_words < self.min_prompt_words:
            raise UserError(
                f"data.max_prompt_words={self.max_prompt_words} is less than "
                f"data.min_prompt_words={self.min_prompt_words}; raise it, or lower that"
            )
        if self.min_words <= self.max_prompt_words:
            raise UserError(
                f"data.min_words={self.min_words} leaves nothing after data.max_prompt_words={self.max_prompt_words}; "
                "raise it, or lower that"
            )

    def load(self, streams: Streams) -> Corpus:
        """Read the reviews and cut each into a prompt and a response.

        Raises
        ------
        UserError
            If a file is missing or malformed, or the hub is out of reach.
        """
        counts: Counter[str] = Counter()
        train, test = (self._reviews(split, counts) for split in ("train", "test"))
        held_out = set(test)
        apart = [review for review in train if review not in held_out]
        counts["in_test"] = len(train) - len(apart)
        chosen = streams.numpy("imdb/test").permutation(len(test))[: self.test_examples]
        rows = [
            *self._rows(apart, "train", streams.numpy("imdb/prompts/train")),
            *self._rows([test[i] for i in sorted(chosen)], "test", streams.numpy("imdb/prompts/test")),
        ]
        return corpus_of(rows, 0.0, self.reviews_per_user, streams, counts)

    def _reviews(self, split: str, counts: Counter[str]) -> list[str]:
        """Return a split's reviews without mark-up, each once."""
        file = HUB_FILE.format(split=split)
        path = dataset_file(HUB_NAME, file) if self.path is None else table_in(Path(self.path), (split, file))
        reviews = [
            plain_text(text_cell(record["text"], where, "text")) for where, record in read_table(path, ("text",))
        ]
        long = [review for review in reviews if len(review.split()) >= self.min_words]
        different = list(dict.fromkeys(long))
        counts["review_short"] += len(reviews) - len(long)
        counts["review_repeated"] += len(long) - len(different)
        return different

    def _rows(self, reviews: list[str], split: Split, rng: np.random.Generator) -> Iterator[CorpusRow]:
        lengths = rng.integers(self.min_prompt_words, self.max_prompt_words, size=len(reviews), endpoint=True)
        for review, length in zip(reviews, lengths.tolist(), strict=True):
            words = review.split()
            response = " ".join(words[length : length + self.response_words])
            yield CorpusRow(" ".join(words[:length]), response, None, GROUP, split=split)


def plain_text(review: str) -> str:
    """Return a review with single spaces for line breaks (``<br />``) and runs of white space."""
    return " ".join(_LINE_BREAK.sub(" ", review).split())
