"""GlobalOpinionQA: answer distributions of countries in the Pew Global Attitudes and World Values surveys.

Durmus et al. 2023, "Towards measuring the representation of subjective global opinions in language models".
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from fedalign.data.answers import AnswerRow, build_survey, checked_shares
from fedalign.data.cleaning import Cleaning
from fedalign.data.names import suggest
from fedalign.data.schema import Survey, SurveySource
from fedalign.data.survey_file import survey_rows
from fedalign.data.table import read_table, suffix_of
from fedalign.errors import UserError
from fedalign.hub import dataset_file
from fedalign.rng import Streams

HUB_NAME = "Anthropic/llm_global_opinions"
HUB_FILE = "data/global_opinions.csv"


@dataclass(frozen=True)
class GlobalOpinions(SurveySource):
    """GlobalOpinionQA from the hub, or from a local file in one of two forms.

    ``.csv`` is the published form: columns question, selections (Python text of a dict from country to shares),
    options (Python text of a list), source. What is known to be broken there is dropped and counted: rows without
    a question or options, options that are not all different, and answers that are all zero, of the wrong length,
    or off in sum. Any other suffix is read as a survey file whose column ``country`` holds the group; there, a
    malformed row is an error.

    Parameters
    ----------
    name : str
    path : str or None
        None takes the published file from the hub (or its cache).
    groups : tuple of str or None
        Countries to keep, in this order; None keeps all.
    sum_tolerance : float
        How far a distribution's sum may be from 1; published shares are rounded.
    cleaning : Cleaning
        Rules for survey artefacts.
    """

    name: str
    path: str | None
    groups: tuple[str, ...] | None
    sum_tolerance: Annotated[float, Field(ge=0.0, lt=1.0)]
    cleaning: Cleaning

    def load(self, streams: Streams) -> Survey:
        """Read, check and clean the survey; draws nothing from ``streams``.

        A country that answers a question twice differently (two waves of a survey) keeps the first answer.

        Raises
        ------
        UserError
            If the file is missing or malformed, the hub is out of reach, or a country of ``groups`` is not there.
        """
        path = dataset_file(HUB_NAME, HUB_FILE) if self.path is None else Path(self.path)
        counts: Counter[str] = Counter()
        if suffix_of(path) == ".csv":
            rows = _published_rows(path, self.sum_tolerance, counts)
        else:
            rows = survey_rows(path, "country")
        # Reading fully first completes ``counts``.
        survey = build_survey(list(rows), self.cleaning, self.sum_tolerance, repeats="first", dropped=counts)
        return survey if self.groups is None else _keep_groups(survey, self.groups)


def _keep_groups(survey: Survey, groups: tuple[str, ...]) -> Survey:
    for name in groups:
        if name not in survey.answers:
            raise UserError(f"data.groups: no country {name!r} in the data{suggest(name, survey.answers)}")
    answers = {name: survey.answers[name] for name in groups}
    asked = {question_id for group in answers.values() for question_id in group}
    questions = {name: question for name, question in survey.questions.items() if name in asked}
    return replace(survey, questions=questions, answers=answers)


def _published_rows(path: Path, sum_tolerance: float, counts: Counter[str]) -> Iterator[AnswerRow]:
    """Yield the usable answers of the published CSV and count the others in ``counts``."""
    for where, record in read_table(path, ("question", "selections", "options")):
        question = str(record["question"])
        options = tuple(str(option) for option in _literal(record["options"], where, "options", list))
        if not question.strip():
            counts["question_empty"] += 1
        elif len(options) < 2 or not all(option.strip() for option in options):
            counts["options_empty"] += 1
        elif len(set(options)) < len(options):
            counts["options_repeated"] += 1
        else:
            selections = _literal(record["selections"], where, "selections", dict)
            yield from _published_answers(where, question, options, selections, sum_tolerance, counts)


def _published_answers(
    where: str,
    question: str,
    options: tuple[str, ...],
    selections: Mapping[object, object],
    sum_tolerance: float,
    counts: Counter[str],
) -> Iterator[AnswerRow]:
    for country, shares in selections.items():
        if not isinstance(shares, list) or not all(isinstance(share, (int, float)) for share in shares):
            raise UserError(
                f"{where}: 'selections' holds {str(shares)[:40]!r} for {country!r}; it must be a list of shares"
            )
        if not any(shares):
            counts["answer_all_zero"] += 1
            continue
        row = AnswerRow(f"{where} ({country})", str(country), question, options, shares)
        try:
            checked_shares(row, sum_tolerance)
        except UserError:
            counts["answer_malformed"] += 1
            continue
        yield row


def _literal(value: object, where: str, column: str, kind: type) -> Any:
    """Return a cell's Python literal; text around a dict, as in ``defaultdict(<class 'list'>, {...})``, is cut off."""
    text = str(value).strip()
    if kind is dict and text.startswith("defaultdict("):
        text = text[text.find("{") : text.rfind("}") + 1]
    try:
        literal = ast.literal_eval(text) if text else kind()
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        literal = None
    if not isinstance(literal, kind):
        raise UserError(
            f"{where}: {column!r} holds {str(value)[:40]!r}; it must be the Python text of a {kind.__name__}"
        )
    return literal
