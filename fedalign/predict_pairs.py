"""Which of two responses a new person prefers, from a few of its judgments: predictions of pair methods."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from fedalign.config import RunConfig
from fedalign.data.embed import EmbeddingCache, default_cache_directory, embed
from fedalign.data.pair_data import question_of
from fedalign.data.pair_rows import PairRow, clean_pairs
from fedalign.data.pairs import Judgments, Pair, PairShard, PairSource, Role
from fedalign.data.pairs_file import parse_pair_row
from fedalign.data.progress import terminal_bar
from fedalign.data.table import parse_json_cell, read_table, suffix_of
from fedalign.errors import UserError
from fedalign.methods.pairs import ACCURACY, PairPhase, batch_of
from fedalign.opened_run import OpenedRun
from fedalign.rng import Streams

_PERSON = "the new person"
_PHASE = "predictions"


@dataclass(frozen=True)
class PairPrediction:
    """How likely a person prefers each of two responses.

    Parameters
    ----------
    question : str
        The prompt.
    options : (str, str)
        The responses.
    shares : (float, float)
        Their probabilities; sum to 1.
    """

    titles: ClassVar[tuple[str, str, str]] = ("prompt", "response", "probability")

    question: str
    options: tuple[str, str]
    shares: tuple[float, float]

    def to_json(self) -> dict[str, Any]:
        """Return the prediction as plain data; ``probability`` is that of the first response."""
        return {"prompt": self.question, "responses": list(self.options), "probability": self.shares[0]}


def predict_choices(run: OpenedRun, judgments: Path) -> list[PairPrediction]:
    """Predict a person's open choices from its judgments.

    Parameters
    ----------
    run : OpenedRun
        Of a pair method.
    judgments : Path
        One person's file of pairs (JSONL, CSV or Parquet): rows with ``prompt``, ``chosen`` and ``rejected`` are what
        the person has judged, rows with ``prompt`` and ``responses``, a list of two, are to be predicted.

    Raises
    ------
    UserError
        If the file is malformed, judges nothing or asks nothing.
    """
    phase = [phase for phase in run.phases if isinstance(phase, PairPhase)][-1]
    state = run.states[phase.name]
    known, wanted = read_person(judgments)
    if not wanted:
        raise UserError(
            f'{judgments}: nothing is asked; add rows with "prompt" and "responses": [a, b], without "chosen"'
        )
    person = judgments_of(run.config, known, wanted)
    shard = PairShard(_PERSON, Role.UNSEEN, (person,), prompt_tail(run.config))
    streams = Streams(run.config.seed, _PHASE, client=_PERSON)
    with torch.inference_mode():
        phase.load(state)
        predictor = phase.predictors(state, shard, person, person.train, streams)[ACCURACY]
        batch = batch_of(person, person.test[None], None)
        probabilities = torch.sigmoid(predictor(batch.first, batch.second))[0].tolist()
    return [
        PairPrediction(pair.prompt, (pair.chosen, pair.rejected), (p, 1 - p))
        for pair, p in zip(wanted, probabilities, strict=True)
    ]


def read_person(path: Path) -> tuple[list[Pair], list[Pair]]:
    """Return what a person has judged, and what is to be predicted, there with the first response as the chosen one.

    Raises
    ------
    UserError
        If the file is malformed or holds no usable judgment.
    """
    text_cells = suffix_of(path) == ".csv"
    known: list[PairRow] = []
    wanted: list[Pair] = []
    for where, record in read_table(path, ("prompt",)):
        if record.get("chosen") in (None, ""):
            row = parse_pair_row(_asked(record, where, text_cells), where, text_cells)
            try:
                wanted += clean_pairs([row], 0.0, "keep").pairs
            except UserError:
                raise UserError(f"{where}: prompt or a response is empty, or both responses are the same") from None
        elif "rejected" not in record:
            raise UserError(f"{where}: no column 'rejected' beside 'chosen'; a judgment needs both")
        else:
            known.append(parse_pair_row(record, where, text_cells))
    if not known:
        raise UserError(f"{path}: no judgment is given; add rows with prompt, chosen and rejected")
    return list(clean_pairs(known, 0.0, "keep").pairs), wanted


def judgments_of(config: RunConfig, known: Sequence[Pair], wanted: Sequence[Pair]) -> Judgments:
    """Return one person's encoded judgments: ``train`` is what it told, ``test`` what is asked."""
    pairs, tail = [*known, *wanted], prompt_tail(config)
    questions = [question_of(pair, tail) for pair in pairs]
    vectors = embed(questions, config.encoder, EmbeddingCache(default_cache_directory()), terminal_bar)
    count = len(known)
    return Judgments(
        person=_PERSON,
        group=Counter(pair.group for pair in known).most_common(1)[0][0],
        prompts=tuple(pair.prompt for pair in pairs),
        categories=tuple(pair.group for pair in pairs),
        features=torch.stack([vectors[question.id] for question in questions]),
        lengths=torch.tensor([[len(pair.chosen), len(pair.rejected)] for pair in pairs], dtype=torch.float32),
        tie=torch.tensor([pair.tie for pair in pairs]),
        conflict=torch.tensor([pair.conflict for pair in pairs]),
        train=torch.arange(count),
        test=torch.arange(count, len(pairs)),
    )


def prompt_tail(config: RunConfig) -> int:
    """Return how many characters of a prompt's end the run's encoder reads."""
    assert isinstance(config.data, PairSource)
    return config.data.prompt_tail


def _asked(record: Mapping[str, object], where: str, text_cells: bool) -> dict[str, object]:
    """Return a row without a choice in the columns of a judgment."""
    responses = record.get("responses")
    if text_cells:
        responses = parse_json_cell(responses, where, "responses")
    if not isinstance(responses, list | tuple) or len(responses) != 2:
        raise UserError(
            f"{where}: 'responses' holds {str(responses)[:40]!r}; a row without 'chosen' needs a list of two there"
        )
    return {"prompt": record["prompt"], "chosen": responses[0], "rejected": responses[1], "group": record.get("group")}
