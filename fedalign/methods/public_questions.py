"""Questions that everybody may know: laid out as points, dealt into asked and held-out ones, read from a file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fedalign.data.answers import check_options, parse_row
from fedalign.data.schema import GroupJudgments, Question
from fedalign.data.table import parse_json_cell, read_table, suffix_of
from fedalign.errors import UserError
from fedalign.methods.question_prior import stable_id

KEY = "method.questions"


@dataclass(frozen=True)
class PublicQuestions:
    """Q questions with P options in all.

    Parameters
    ----------
    questions : tuple of Question, length Q
    ids : int64 Tensor, shape (Q,)
        By which clients know them, see :func:`fedalign.methods.question_prior.stable_id`.
    offsets : int64 Tensor, shape (Q + 1,)
        Question q owns points ``offsets[q]:offsets[q+1]``.
    asked : int
        The first so many may be asked in training; the others are held out.
    """

    questions: tuple[Question, ...]
    ids: Tensor
    offsets: Tensor
    asked: int

    @classmethod
    def of(cls, questions: Sequence[Question], held_out: float) -> PublicQuestions:
        """Lay questions out; the last ``held_out`` of them, as a share, are never asked in training."""
        sizes = [len(question.options) for question in questions]
        return cls(
            questions=tuple(questions),
            ids=torch.tensor([stable_id(question.id) for question in questions], dtype=torch.int64),
            offsets=torch.tensor([0, *sizes], dtype=torch.int64).cumsum(0),
            # Rounded, because 0.7 * 10 is not 7.
            asked=len(questions) - int(round(held_out * len(questions), 9)),
        )


@dataclass(frozen=True)
class Table:
    """A number for every option of some questions, as it travels in a state.

    Parameters
    ----------
    ids : int64 Tensor, shape (Q,)
    offsets : int64 Tensor, shape (Q + 1,)
    values : Tensor, shape (P,)
    """

    ids: Tensor
    offsets: Tensor
    values: Tensor

    def look_up(self, judgments: GroupJudgments, questions: Iterable[int]) -> tuple[Tensor, Tensor]:
        """Return those of a group's questions that the table has, int64, and its values for their points, in order."""
        rows = {key: row for row, key in enumerate(self.ids.tolist())}
        named = [(question, rows.get(stable_id(judgments.question_ids[question]))) for question in questions]
        found = [(question, row) for question, row in named if row is not None]
        pieces = [self.values[self.offsets[row] : self.offsets[row + 1]] for _, row in found]
        chosen = torch.tensor([question for question, _ in found], dtype=torch.int64)
        return chosen, torch.cat(pieces) if pieces else self.values[:0]


def read_questions(path: Path) -> list[Question]:
    """Read a table with the columns ``question`` and ``options``; a question that stands in several rows counts once.

    Raises
    ------
    UserError
        If the file is missing, malformed or empty.
    """
    questions: dict[str, Question] = {}
    text_cells = suffix_of(path) == ".csv"
    for where, record in read_table(path, ("question", "options")):
        options = parse_json_cell(record["options"], where, "options") if text_cells else record["options"]
        row = parse_row({**record, "options": options, "group": "nobody", "distribution": []}, where, "group")
        question = Question(row.question, row.options)
        check_options(question, where)
        questions.setdefault(question.id, question)
    if not questions:
        raise UserError(f"{KEY}={path}: holds no question")
    return list(questions.values())
