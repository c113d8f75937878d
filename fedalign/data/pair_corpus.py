"""Any source of pairs as texts: the chosen response is what the prompt was continued with, the other is rejected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from fedalign.data.corpus import Corpus, CorpusSource
from fedalign.data.corpus_rows import CorpusRow, corpus_of
from fedalign.data.pairs import Pair, PairSource
from fedalign.rng import Streams


@dataclass(frozen=True)
class PairCorpus(CorpusSource):
    """The pairs of a source, with their annotators as users; ties have no preferred text and are dropped (``tie``).

    Parameters
    ----------
    name : str
    path : str or None
        Where the pairs are; the config hands it to the source.
    source : PairSource
    pairs_per_user : int
        How many pairs an invented user has, where the source names no annotators.
    """

    name: str
    path: str | None
    source: PairSource
    pairs_per_user: Annotated[int, Field(ge=1)]

    def load(self, streams: Streams) -> Corpus:
        """Load the source and give every pair a user.

        Raises
        ------
        UserError
            If the source's data are missing or malformed, or only some pairs name an annotator.
        """
        found = self.source.load(streams)
        counts = Counter(found.dropped)
        return corpus_of(_rows(found.pairs, counts), 0.0, self.pairs_per_user, streams, counts)


def _rows(pairs: Iterable[Pair], counts: Counter[str]) -> Iterator[CorpusRow]:
    for pair in pairs:
        if pair.tie:
            counts["tie"] += 1
        else:
            yield CorpusRow(pair.prompt, pair.chosen, pair.rejected, pair.group, pair.annotator, pair.split)
