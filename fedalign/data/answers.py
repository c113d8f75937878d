"""Rows of answers, checked one by one, become a survey."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedalign.data.cleaning import CleanedQuestion, Cleaning, clean_question, clean_shares
from fedalign.data.schema import Distribution, Question, Survey
from fedalign.data.table import number_of
from fedalign.errors import UserError


@dataclass(frozen=True)
class AnswerRow:
    """One group's shares over one question's options, as read.

    Parameters
    ----------
    where : str
        File and row, for error messages.
    group, question : str
    options : tuple of str
    distribution : sequence of float
        One share an option.
    """

    where: str
    group: str
    question: str
    options: tuple[str, ...]
    distribution: Sequence[float]


def parse_row(record: Mapping[str, object], where: str, group_column: str) -> AnswerRow:
    """Turn one record with the columns group, question, options, distribution into an ``AnswerRow``.

    Parameters
    ----------
    record : mapping from column to value
    where : str
        File and row, for error messages.
    group_column : str
        Name of the column that holds the group.

    Raises
    ------
    UserError
        If a value has the wrong type or is empty.
    """
    group = _text(record[group_column], where, group_column)
    question = _text(record["question"], where, "question")
    options = tuple(_text(option, where, "options") for option in _list(record["options"], where, "options"))
    distribution = [_number(share, where) for share in _list(record["distribution"], where, "distribution")]
    return AnswerRow(where, group, question, options, distribution)


def checked_shares(row: AnswerRow, sum_tolerance: float) -> Distribution:
    """Return the row's shares, shape (options,), summing to exactly 1.

    Raises
    ------
    UserError
        If the number of shares is not the number of options, a share is negative, NaN or infinite,
        or the sum is further than ``sum_tolerance`` from 1.
    """
    shares = np.array(row.distribution, dtype=np.float64)
    if len(shares) != len(row.options):
        raise UserError(
            f"{row.where}: {len(row.options)} options but {len(shares)} shares in 'distribution'; "
            "give one share an option"
        )
    if not np.isfinite(shares).all():
        raise UserError(
            f"{row.where}: 'distribution' holds a NaN or infinite share; every share must be a number in [0, 1]"
        )
    if (shares < 0.0).any():
        raise UserError(f"{row.where}: 'distribution' holds the negative share {shares.min():g}; shares lie in [0, 1]")
    total = float(shares.sum())
    # The slack absorbs binary rounding of a sum that sits exactly on the tolerance.
    if abs(total - 1.0) > sum_tolerance + 1e-9:
        raise UserError(
            f"{row.where}: 'distribution' sums to {total:g}; it must sum to 1 (tolerance {sum_tolerance:g})"
        )
    return shares / total


def check_options(question: Question, where: str) -> None:
    """Refuse a question that nobody can answer.

    Raises
    ------
    UserError
        If there are fewer than two options, or two are the same.
    """
    if len(question.options) < 2:
        raise UserError(f"{where}: {len(question.options)} option(s) in 'options'; a question needs at least 2")
    twice = [option for option, count in Counter(question.options).items() if count > 1]
    if twice:
        raise UserError(f"{where}: option {twice[0]!r} appears twice in 'options'; options must differ")


def build_survey(
    rows: Iterable[AnswerRow],
    cleaning: Cleaning,
    sum_tolerance: float,
    repeats: Literal["error", "first"],
    dropped: Mapping[str, int] | None = None,
) -> Survey:
    """Check, clean and collect rows.

    Parameters
    ----------
    rows : iterable of AnswerRow
        In file order.
    cleaning : Cleaning
        Rules for survey artefacts.
    sum_tolerance : float
        How far a row's sum may be from 1; it is then renormalised exactly.
    repeats : "error" or "first"
        What happens when a group answers a question a second time, differently: refuse, or keep the first and count.
        Identical repeats are always dropped and counted.
    dropped : mapping from rule to count, optional
        What the reader itself has dropped already.

    Returns
    -------
    Survey

    Raises
    ------
    UserError
        If a row is malformed or no answer is left.
    """
    counts = Counter(dropped or {})
    cleaned: dict[tuple[str, tuple[str, ...]], CleanedQuestion] = {}
    ids: dict[Question, str] = {}
    questions: dict[str, Question] = {}
    answers: dict[str, dict[str, Distribution]] = {}
    for row in rows:
        shares = checked_shares(row, sum_tolerance)
        key = (row.question, row.options)
        if key not in cleaned:
            check_options(Question(row.question, row.options), row.where)
            cleaned[key] = clean_question(row.question, row.options, cleaning)
            if (fresh := cleaned[key].question) is not None:
                check_options(fresh, row.where)
                ids.setdefault(fresh, fresh.id)
        counts.update(cleaned[key].removed)
        question = cleaned[key].question
        kept = None if question is None else clean_shares(shares, cleaned[key], cleaning.min_mass)
        if question is None or kept is None:
            counts["answer_with_one_option" if question is None else "answer_with_little_mass"] += 1
            continue
        group = answers.setdefault(row.group, {})
        if ids[question] in group:
            counts[_repeat(group[ids[question]], kept, row, repeats)] += 1
            continue
        questions.setdefault(ids[question], question)
        group[ids[question]] = kept
    if not questions:
        raise UserError(
            f"data: no usable answer is left; removed so far: {dict(counts) or 'nothing, the input is empty'}"
        )
    return Survey(questions=questions, answers=answers, dropped=dict(counts))


def _repeat(first: Distribution, second: Distribution, row: AnswerRow, repeats: Literal["error", "first"]) -> str:
    if np.array_equal(first, second):
        return "identical_answer"
    if repeats == "error":
        raise UserError(
            f"{row.where}: group {row.group!r} answers {row.question[:60]!r} a second time with other shares; "
            "remove one of the two rows"
        )
    return "repeated_answer"


def _text(value: object, where: str, column: str) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: {column!r} holds {value!r}; it must be a text that is not empty")
    return value


def _list(value: object, where: str, column: str) -> Sequence[object]:
    if not isinstance(value, (list, tuple)):
        raise UserError(f"{where}: {column!r} holds {str(value)[:40]!r}; it must be a list")
    return value


def _number(value: object, where: str) -> float:
    number = number_of(value)
    if number is None:
        raise UserError(f"{where}: 'distribution' holds {value!r:.40}; every share must be a number in [0, 1]")
    return number
