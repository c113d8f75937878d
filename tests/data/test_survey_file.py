"""A user's file reads the same from every format, with the rules that its config switches on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedalign.data.schema import Question, Survey
from fedalign.errors import UserError
from fedalign.rng import Streams

Make = Callable[..., Any]
Write = Callable[[str, Sequence[dict[str, Any]]], Path]
OFF = {"whitespace": False, "totals": False, "refusals": False, "missing": False, "min_mass": 0.5}


def a_row(**changes: Any) -> dict[str, Any]:
    return {"group": "north", "question": "Tea?", "options": ["yes", "no"], "distribution": [0.25, 0.75], **changes}


def load(make: Make, path: Path, **changes: Any) -> Survey:
    loaded: Survey = make("data/survey_file", path=str(path), **changes).load(Streams(0))
    return loaded


@pytest.mark.parametrize("name", ["s.jsonl", "s.jsonl.gz", "s.csv", "s.parquet"])
def test_every_format_gives_the_same_survey(make: Make, write: Write, name: str) -> None:
    rows = [a_row(), a_row(group="south, west", distribution=[1.0, 0.0]), a_row(question="Salt?", options=["a", "b"])]
    survey = load(make, write(name, rows))
    tea, salt = Question("Tea?", ("yes", "no")).id, Question("Salt?", ("a", "b")).id
    assert list(survey.questions) == [tea, salt]
    assert {group: list(own) for group, own in survey.answers.items()} == {"north": [tea, salt], "south, west": [tea]}
    np.testing.assert_array_equal(survey.answers["south, west"][tea], [1.0, 0.0])


def test_extra_columns_are_ignored(make: Make, write: Write) -> None:
    assert load(make, write("s.csv", [a_row(year=2020)])).questions


def test_without_a_path_it_asks_for_one(make: Make) -> None:
    with pytest.raises(UserError, match=r"data.path is not set; give your survey file"):
        make("data/survey_file").load(Streams(0))


def test_a_group_column_of_another_name_is_suggested(make: Make, write: Write) -> None:
    row = a_row()
    row["groups"] = row.pop("group")
    with pytest.raises(UserError, match=r"no column 'group'; did you mean 'groups'\?"):
        load(make, write("s.jsonl", [row]))


def test_the_row_of_an_error_is_named(make: Make, write: Write) -> None:
    path = write("s.jsonl", [a_row(), a_row(group="south", distribution=[0.5, 0.6])])
    with pytest.raises(UserError) as error:
        load(make, path)
    assert str(error.value) == f"{path} line 2: 'distribution' sums to 1.1; it must sum to 1 (tolerance 0.001)"


def test_the_sum_tolerance_is_used(make: Make, write: Write) -> None:
    path = write("s.jsonl", [a_row(distribution=[0.25, 0.70])])
    survey = load(make, path, sum_tolerance=0.06)
    np.testing.assert_allclose(next(iter(survey.answers["north"].values())), [0.25 / 0.95, 0.70 / 0.95])


@pytest.mark.parametrize("rule", ["whitespace", "totals", "refusals", "missing"])
def test_each_cleaning_rule_can_be_switched_on(make: Make, write: Write, rule: str) -> None:
    options = [" yes", "no", "Total N=", "Refused", "Missing; Unknown"]
    path = write("s.jsonl", [a_row(options=options, distribution=[0.2, 0.2, 0.4, 0.1, 0.1])])
    untouched, cleaned = load(make, path), load(make, path, cleaning={**OFF, rule: True})
    assert next(iter(untouched.questions.values())).options == tuple(options)
    assert untouched.dropped == {}
    assert next(iter(cleaned.questions)) != next(iter(untouched.questions))


def test_min_mass_is_used(make: Make, write: Write) -> None:
    rows = [a_row(options=["yes", "no", "Refused"], distribution=[0.3, 0.3, 0.4]), a_row(question="Salt?")]
    path = write("s.jsonl", rows)
    for min_mass, dropped in ((0.5, 0), (0.7, 1)):
        survey = load(make, path, cleaning={**OFF, "refusals": True, "min_mass": min_mass})
        assert survey.dropped.get("answer_with_little_mass", 0) == dropped
