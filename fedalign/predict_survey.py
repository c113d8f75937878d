"""A new group's answer distributions from a few answered questions: predictions of survey methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from fedalign.data.answers import AnswerRow, check_options, checked_shares, parse_row
from fedalign.data.embed import EmbeddingCache, build_shard, default_cache_directory, embed
from fedalign.data.progress import terminal_bar
from fedalign.data.schema import ClientAnswers, Distribution, Question, Role
from fedalign.data.table import parse_json_cell, read_table, suffix_of
from fedalign.errors import UserError
from fedalign.methods.survey import SurveyPhase
from fedalign.opened_run import OpenedRun

_GROUP = "the new group"
_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Prediction:
    """Predicted shares of one question.

    Parameters
    ----------
    question : str
    options : tuple of str
    shares : tuple of float
        Sum to 1.
    """

    titles: ClassVar[tuple[str, str, str]] = ("question", "option", "share")

    question: str
    options: tuple[str, ...]
    shares: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the prediction as plain data, in the columns of a survey file."""
        return {"question": self.question, "options": list(self.options), "distribution": list(self.shares)}


def predict_shares(run: OpenedRun, answers: Path) -> list[Prediction]:
    """Predict the unanswered questions of a file from its answered ones.

    Parameters
    ----------
    run : OpenedRun
        Of a survey predictor.
    answers : Path
        A survey file (JSONL, CSV or Parquet) of one group with the columns ``question``, ``options`` and
        ``distribution``; the questions to predict have no distribution.

    Raises
    ------
    UserError
        If the file is malformed, answers nothing or asks nothing.
    """
    phase = run.phases[-1]
    assert isinstance(phase, SurveyPhase)
    known, wanted = _read(answers)
    questions = {question.id: question for question in [*(q for q, _ in known), *wanted]}
    cache = EmbeddingCache(default_cache_directory())
    vectors = embed(questions.values(), run.config.encoder, cache, terminal_bar)
    told = {question.id: shares for question, shares in known}
    shard = build_shard(ClientAnswers(_GROUP, Role.UNSEEN, {_GROUP: _laid_out(told, wanted)}, {}), vectors)
    context = torch.arange(len(told))
    target = torch.arange(len(told), len(told) + len(wanted))
    with torch.inference_mode():
        shares = phase.predict(run.states[phase.name], shard, shard.groups[0], context, target)
    pieces = torch.split(shares, [len(question.options) for question in wanted])
    return [
        Prediction(question.text, question.options, tuple(piece.tolist()))
        for question, piece in zip(wanted, pieces, strict=True)
    ]


def _laid_out(told: Mapping[str, Distribution], wanted: Sequence[Question]) -> dict[str, Distribution]:
    """Return the answered questions, then the wanted ones with placeholder shares that no predictor reads."""
    blank = {q.id: torch.zeros(len(q.options), dtype=torch.float64).numpy() for q in wanted}
    return {**told, **blank}


def _read(path: Path) -> tuple[list[tuple[Question, Distribution]], list[Question]]:
    """Return answered and wanted questions."""
    known: dict[str, tuple[Question, Distribution]] = {}
    wanted: dict[str, Question] = {}
    text_cells = suffix_of(path) == ".csv"
    for where, record in read_table(path, ("question", "options")):
        missing = record.get("distribution") in (None, "", [])
        lists = {"options": record["options"], "distribution": [] if missing else record["distribution"]}
        if text_cells:
            lists = {key: parse_json_cell(cell, where, key) for key, cell in lists.items()}
        row = parse_row({**record, **lists, "group": _GROUP}, where, "group")
        question = Question(row.question, row.options)
        check_options(question, where)
        if question.id in known or question.id in wanted:
            raise UserError(f"{where}: {row.question[:60]!r} stands twice; keep one row a question")
        if missing:
            wanted[question.id] = question
        else:
            known[question.id] = (question, _shares(row))
    if not known:
        raise UserError(f"{path}: no question has a distribution; answer at least one")
    if not wanted:
        raise UserError(f"{path}: every question has a distribution; leave it out (null) for those to predict")
    return list(known.values()), list(wanted.values())


def _shares(row: AnswerRow) -> Distribution:
    return checked_shares(row, _SUM_TOLERANCE)
