"""E2E NLG: crowd workers rate five systems' sentences about a restaurant side by side; workers are known.

Dušek, Novikova and Rieser 2020, "Evaluating the state-of-the-art of end-to-end natural language generation: the E2E NLG
challenge": magnitude estimation, RankME. A worker's scores are read as a ranking with ties.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from fedalign.data.corpus_cells import name_cell
from fedalign.data.names import suggest
from fedalign.data.ranking_rows import RankingRow, clean_rankings
from fedalign.data.rankings import RankingSet, RankingSource
from fedalign.data.rankings_file import parse_ranking_row
from fedalign.data.table import read_table, suffix_of
from fedalign.errors import UserError
from fedalign.rng import Streams


@dataclass(frozen=True)
class E2ERankings(RankingSource):
    """Rankings from a file with the columns prompt, responses, ranks, criterion, annotator and perhaps split.

    A judgment's group is its criterion. Systems often wrote the same sentence and workers often tie all five; see
    ``clean_rankings`` for what is dropped and counted. Counted beside that:

    =============== ====================================================
    count           what was dropped
    =============== ====================================================
    other_criterion judgments of criteria that are not among ``criteria``
    =============== ====================================================

    Parameters
    ----------
    name : str
    path : str or None
        ``.jsonl``, ``.jsonl.gz``, ``.csv`` or ``.parquet``; None is an error that asks for one.
    prompt_tail : int
        How many characters of a prompt's end the encoder reads.
    criteria : sequence of str or None
        Criteria of which judgments are read; None reads all.
    test_fraction : float
        Share of the prompts whose judgments are held out (by a hash of the prompt), where no split is given.
    """

    name: str
    path: str | None
    prompt_tail: Annotated[int, Field(ge=1)]
    criteria: Annotated[tuple[str, ...], Field(min_length=1)] | None
    test_fraction: Annotated[float, Field(ge=0.0, lt=1.0)]

    def load(self, streams: Streams) -> RankingSet:
        """Read and clean the file; draws nothing from ``streams``.

        Raises
        ------
        UserError
            If the file is missing or malformed, or has no judgment of one of the criteria.
        """
        if self.path is None:
            raise UserError(
                "data.path is not set; these rankings are read from a file (there is none on the hub): "
                "give yours, e.g. data.path=e2e_rankings.jsonl.gz"
            )
        counts: dict[str, int] = {}
        return clean_rankings(self._rows(Path(self.path), counts), self.test_fraction, counts)

    def _rows(self, path: Path, counts: dict[str, int]) -> Iterator[RankingRow]:
        """Yield the judgments of the wanted criteria, and count the others."""
        found: set[str] = set()
        text_cells = suffix_of(path) == ".csv"
        for where, record in read_table(path, ("prompt", "responses", "ranks", "criterion", "annotator")):
            criterion = name_cell(record["criterion"], where, "criterion")
            if criterion is None:
                raise UserError(f"{where}: 'criterion' is empty; say what was judged, e.g. quality")
            found.add(criterion)
            if self.criteria is None or criterion in self.criteria:
                yield parse_ranking_row({**record, "group": criterion}, where, text_cells)
            else:
                counts["other_criterion"] = counts.get("other_criterion", 0) + 1
        for name in self.criteria or ():
            if name not in found:
                raise UserError(f"data.criteria: no criterion {name!r} in {path}{suggest(name, sorted(found))}")
