"""LLMFAO: crowd workers compare language models' answers to thirteen prompts; ties are allowed, workers are known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from fedalign.data.names import suggest
from fedalign.data.pair_rows import PairRow, Ties, clean_pairs
from fedalign.data.pairs import PairSet, PairSource
from fedalign.data.pairs_file import parse_split
from fedalign.data.table import read_table
from fedalign.errors import UserError
from fedalign.rng import Streams

GROUP = "crowd"
"""Group of all judgments: the workers belong to no known groups."""

_WINNERS = ("x", "y", "tie")
_SUFFIXES = (".jsonl.gz", ".jsonl", ".csv", ".parquet")

Responses = dict[tuple[str, str], tuple[str, str]]
"""Prompt and model to the prompt's text and the model's response."""


@dataclass(frozen=True)
class LLMFAO(PairSource):
    """Comparisons of the LLMFAO crowd study, from a folder with two tables.

    ``responses`` has the columns prompt_id, prompt, model, response. ``comparisons`` has prompt_id, model_x, model_y,
    annotator, winner (``x``, ``y`` or ``tie``) and perhaps split. Either is ``.jsonl.gz``, ``.jsonl``, ``.csv`` or
    ``.parquet``. A seventh of the comparisons has an empty answer on one side; they are dropped and counted.

    Parameters
    ----------
    name : str
    path : str or None
        The folder; None is an error that asks for one.
    prompt_tail : int
        How many characters of a prompt's end the encoder reads.
    test_fraction : float
        Share of the prompts whose judgments are held out (by a hash of the prompt), if there is no column ``split``.
    ties : "keep" or "drop"
        What happens to judgments without a preference.
    """

    name: str
    path: str | None
    prompt_tail: Annotated[int, Field(ge=1)]
    test_fraction: Annotated[float, Field(ge=0.0, lt=1.0)]
    ties: Ties

    def load(self, streams: Streams) -> PairSet:
        """Read, join and clean the two tables; draws nothing from ``streams``.

        Raises
        ------
        UserError
            If a table is missing or malformed, or a comparison names a response that is not there.
        """
        if self.path is None:
            raise UserError("data.path is not set; give the folder with comparisons.jsonl.gz and responses.jsonl.gz")
        folder = Path(self.path)
        responses = _responses(_table(folder, "responses"))
        return clean_pairs(_rows(_table(folder, "comparisons"), responses), self.test_fraction, self.ties)


def _table(folder: Path, stem: str) -> Path:
    if not folder.is_dir():
        raise UserError(f"data.path={folder}: no such folder; give the folder with the comparisons and the responses")
    for suffix in _SUFFIXES:
        if (folder / f"{stem}{suffix}").is_file():
            return folder / f"{stem}{suffix}"
    raise UserError(f"data.path={folder}: no table {stem!r} in it; it must be one of {stem}{{{','.join(_SUFFIXES)}}}")


def _responses(path: Path) -> Responses:
    found: Responses = {}
    for where, record in read_table(path, ("prompt_id", "prompt", "model", "response")):
        key = (_name(record["prompt_id"], where, "prompt_id"), _name(record["model"], where, "model"))
        if key in found:
            raise UserError(f"{where}: prompt {key[0]} already has a response of model {key[1]}; remove one of them")
        prompt, response = record["prompt"], record["response"]
        if not isinstance(prompt, str) or not isinstance(response, str):
            raise UserError(f"{where}: 'prompt' and 'response' must be texts")
        found[key] = (prompt, response)
    return found


def _rows(path: Path, responses: Responses) -> Iterator[PairRow]:
    for where, record in read_table(path, ("prompt_id", "model_x", "model_y", "annotator", "winner")):
        winner = _name(record["winner"], where, "winner")
        if winner not in _WINNERS:
            raise UserError(f"{where}: 'winner' holds {winner!r}{suggest(winner, _WINNERS)}")
        prompt_id = _name(record["prompt_id"], where, "prompt_id")
        sides = []
        for column in ("model_x", "model_y"):
            key = (prompt_id, _name(record[column], where, column))
            if key not in responses:
                raise UserError(f"{where}: there is no response of model {key[1]} to prompt {key[0]}; add it")
            sides.append(responses[key])
        chosen, rejected = reversed(sides) if winner == "y" else sides
        yield PairRow(
            prompt=chosen[0],
            chosen=chosen[1],
            rejected=rejected[1],
            group=GROUP,
            annotator=_name(record["annotator"], where, "annotator"),
            split=parse_split(record.get("split"), where),
            tie=winner == "tie",
        )


def _name(value: object, where: str, column: str) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)) or not str(value).strip():
        raise UserError(f"{where}: {column!r} holds {str(value)[:40]!r}; it must be a name or a whole number")
    return str(value)
