"""PandaLM's test set: three annotators judge pairs of models' answers, from which rankings of three to five follow.

Wang et al. 2024, "PandaLM: An automatic evaluation benchmark for LLM instruction tuning optimization".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from fedalign.data.corpus_cells import text_cell
from fedalign.data.corpus_files import table_in
from fedalign.data.ranking_rows import RankingRow, clean_rankings
from fedalign.data.rankings import RankingSet, RankingSource
from fedalign.data.rankings_file import parse_ranking_row
from fedalign.data.table import parse_json_cell, read_table
from fedalign.errors import UserError
from fedalign.rng import Streams

_RANKS: Mapping[object, tuple[int, int]] = {0: (1, 1), 1: (1, 2), 2: (2, 1)}
"""A vote's ranks of the two responses: the first is better, the second is, or neither (0)."""

_Covered = set[tuple[str | None, str, str]]
"""Annotator, prompt and response of the rankings that are read."""


@dataclass(frozen=True)
class PandaLM(RankingSource):
    """Judgments from a folder with the tables ``pairs`` and ``derived_rankings``; a prompt is instruction and input.

    ``pairs`` has the columns instruction, input, responses (two) and annotators: a mapping from annotator to 1 or 2,
    the better response, or 0 for a tie; each annotator's vote is a judgment. ``derived_rankings`` has annotator,
    instruction, input, responses, ranks and transitive, which is false where an annotator's votes contradict each
    other. Either may have a column split. Counted beside what ``clean_rankings`` drops:

    ============ =======================================================================================
    count        what was dropped
    ============ =======================================================================================
    intransitive rankings from votes that contradict each other, if ``intransitive`` says so
    in_ranking   votes on two responses that are in a ranking of the same annotator, if both are read
    ============ =======================================================================================

    Parameters
    ----------
    name : str
    path : str or None
        The folder; None is an error that asks for one.
    prompt_tail : int
        How many characters of a prompt's end the encoder reads.
    judgments : {"rankings", "pairs", "both"}
        Which judgments are read; ``both`` takes no vote twice.
    intransitive : "keep" or "drop"
        What happens to rankings from votes that contradict each other.
    test_fraction : float
        Share of the prompts whose judgments are held out (by a hash of the prompt), where no split is given.
    """

    name: str
    path: str | None
    prompt_tail: Annotated[int, Field(ge=1)]
    judgments: Literal["rankings", "pairs", "both"]
    intransitive: Literal["keep", "drop"]
    test_fraction: Annotated[float, Field(ge=0.0, lt=1.0)]

    def load(self, streams: Streams) -> RankingSet:
        """Read and clean the tables; draws nothing from ``streams``.

        Raises
        ------
        UserError
            If a table is missing or malformed.
        """
        if self.path is None:
            raise UserError("data.path is not set; give the folder with pairs.jsonl.gz and derived_rankings.jsonl.gz")
        counts: dict[str, int] = {}
        return clean_rankings(self._rows(Path(self.path), counts), self.test_fraction, counts)

    def _rows(self, folder: Path, counts: dict[str, int]) -> Iterator[RankingRow]:
        covered: _Covered = set()
        if self.judgments != "pairs":
            for row in self._rankings(table_in(folder, ["derived_rankings"]), counts):
                covered.update((row.annotator, row.prompt, response) for response in row.responses)
                yield row
        if self.judgments != "rankings":
            for row in _votes(table_in(folder, ["pairs"])):
                if all((row.annotator, row.prompt, response) in covered for response in row.responses):
                    _count(counts, "in_ranking")
                else:
                    yield row

    def _rankings(self, path: Path, counts: dict[str, int]) -> Iterator[RankingRow]:
        columns = ("annotator", "instruction", "input", "responses", "ranks", "transitive")
        for where, record in read_table(path, columns):
            transitive = parse_json_cell(record["transitive"], where, "transitive")
            if not isinstance(transitive, bool):
                raise UserError(f"{where}: 'transitive' holds {str(transitive)[:40]!r}; it must be true or false")
            if not transitive and self.intransitive == "drop":
                _count(counts, "intransitive")
                continue
            yield _row(record, where, record["annotator"], record["ranks"])


def _votes(path: Path) -> Iterator[RankingRow]:
    """Yield each annotator's judgment of each pair."""
    for where, record in read_table(path, ("instruction", "input", "responses", "annotators")):
        votes = parse_json_cell(record["annotators"], where, "annotators")
        if not isinstance(votes, Mapping):
            raise UserError(f"{where}: 'annotators' holds {str(votes)[:40]!r}; it must be a mapping to votes")
        for annotator, vote in votes.items():
            if isinstance(vote, bool) or vote not in _RANKS:
                raise UserError(f"{where}: the vote of {annotator} is {vote!r}; it must be 1, 2 or 0 (a tie)")
            yield _row(record, where, annotator, list(_RANKS[vote]))


def _row(record: Mapping[str, object], where: str, annotator: object, ranks: object) -> RankingRow:
    parts = [text_cell(record[column], where, column).strip() for column in ("instruction", "input")]
    values = {
        "prompt": "\n\n".join(part for part in parts if part),
        "responses": _texts(parse_json_cell(record["responses"], where, "responses")),
        "ranks": parse_json_cell(ranks, where, "ranks"),
        "annotator": annotator,
        "split": record.get("split"),
    }
    return parse_ranking_row(values, where, text_cells=False)


def _texts(responses: object) -> object:
    """Return responses as texts: the published file holds an answer ``True`` as a truth value."""
    if not isinstance(responses, list):
        return responses
    return [str(response) if isinstance(response, (bool, int, float)) else response for response in responses]


def _count(counts: dict[str, int], rule: str) -> None:
    counts[rule] = counts.get(rule, 0) + 1
