"""Rows become a survey, or one clear line that says which row is wrong and how."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedalign.data.answers import AnswerRow, build_survey, checked_shares, parse_row
from fedalign.data.cleaning import Cleaning
from fedalign.data.schema import Question, Survey
from fedalign.errors import UserError

UNTOUCHED = Cleaning(whitespace=False, totals=False, refusals=False, missing=False, min_mass=1.0)


def row(**changes: Any) -> AnswerRow:
    values = {"group": "north", "question": "Tea?", "options": ("yes", "no"), "distribution": [0.25, 0.75]}
    return AnswerRow(where="survey.jsonl line 7", **{**values, **changes})


def survey_of(*rows: AnswerRow, repeats: Any = "error", **keys: Any) -> Survey:
    return build_survey(rows, UNTOUCHED, sum_tolerance=1e-3, repeats=repeats, **keys)


def test_rows_are_grouped_in_file_order() -> None:
    coffee = row(question="Coffee?", options=("a", "b", "c"), distribution=[0.5, 0.25, 0.25])
    survey = survey_of(row(group="south"), coffee, row())
    tea, other = Question("Tea?", ("yes", "no")), Question("Coffee?", ("a", "b", "c"))
    assert list(survey.questions.values()) == [tea, other]
    assert list(survey.questions) == [tea.id, other.id]
    assert list(survey.answers) == ["south", "north"]
    assert list(survey.answers["north"]) == [other.id, tea.id]
    np.testing.assert_array_equal(survey.answers["north"][other.id], [0.5, 0.25, 0.25])
    assert survey.dropped == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distribution": [0.2, 0.3, 0.5]}, "2 options but 3 shares"),
        ({"distribution": [1.0]}, "2 options but 1 shares"),
        ({"distribution": [-0.1, 1.1]}, "negative share -0.1"),
        ({"distribution": [math.nan, 1.0]}, "NaN or infinite"),
        ({"distribution": [math.inf, 0.0]}, "NaN or infinite"),
        ({"distribution": [0.5, 0.6]}, "sums to 1.1"),
        ({"distribution": [0.0, 0.0]}, "sums to 0"),
        ({"options": ("yes",), "distribution": [1.0]}, "1 option(s)"),
        ({"options": (), "distribution": []}, "sums to 0"),
        ({"options": ("yes", "yes")}, "'yes' appears twice"),
    ],
)
def test_a_malformed_row_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        survey_of(row(question="Fine?"), row(**changes))
    text = str(error.value)
    assert message in text
    assert text.startswith("survey.jsonl line 7: ")
    assert "\n" not in text


@pytest.mark.parametrize(("total", "accepted"), [(1.001, True), (0.999, True), (1.0011, False), (0.9989, False)])
def test_sum_tolerance_is_a_sharp_bound(total: float, accepted: bool) -> None:
    answer = row(distribution=[0.25, total - 0.25])
    if not accepted:
        with pytest.raises(UserError, match="must sum to 1"):
            checked_shares(answer, 1e-3)
        return
    shares = checked_shares(answer, 1e-3)
    assert shares.sum() == pytest.approx(1.0, abs=1e-15)
    assert shares[0] == pytest.approx(0.25 / total)


@given(st.lists(st.floats(0.001, 1.0), min_size=2, max_size=20))
def test_renormalised_shares_sum_to_one_and_keep_their_ratios(raw: list[float]) -> None:
    rounded = [round(share / sum(raw), 4) for share in raw]
    answer = row(options=tuple(str(i) for i in range(len(raw))), distribution=rounded)
    shares = checked_shares(answer, 0.01)
    assert shares.sum() == pytest.approx(1.0, abs=1e-14)
    np.testing.assert_allclose(shares * sum(rounded), rounded, atol=1e-12)


def test_identical_repeats_are_dropped_and_counted() -> None:
    survey = survey_of(row(), row(), row())
    assert survey.dropped == {"identical_answer": 2}
    assert len(survey.answers["north"]) == 1


def test_a_different_repeat_is_refused_or_the_first_is_kept() -> None:
    other = row(distribution=[0.5, 0.5])
    with pytest.raises(UserError, match=r"group 'north' answers 'Tea\?' a second time"):
        survey_of(row(), other)
    survey = survey_of(row(), other, repeats="first")
    assert survey.dropped == {"repeated_answer": 1}
    np.testing.assert_array_equal(survey.answers["north"][Question("Tea?", ("yes", "no")).id], [0.25, 0.75])


def test_the_same_text_with_other_options_is_another_question() -> None:
    assert len(survey_of(row(), row(options=("yes", "never"))).questions) == 2


def test_cleaning_is_applied_and_counted() -> None:
    rules = Cleaning(whitespace=False, totals=True, refusals=True, missing=True, min_mass=0.5)
    rows = [
        row(options=("yes", "no", "Refused"), distribution=[0.3, 0.5, 0.2]),
        row(group="south", options=("yes", "no", "Refused"), distribution=[0.1, 0.2, 0.7]),
        row(question="Salt?", options=("yes", "Refused"), distribution=[0.9, 0.1]),
    ]
    survey = build_survey(rows, rules, 1e-3, repeats="error", dropped={"read_badly": 4})
    assert survey.dropped == {
        "read_badly": 4,
        "refusal_option": 3,
        "answer_with_little_mass": 1,
        "answer_with_one_option": 1,
    }
    np.testing.assert_allclose(survey.answers["north"][Question("Tea?", ("yes", "no")).id], [0.375, 0.625])
    assert list(survey.answers) == ["north"]


def test_options_that_cleaning_makes_equal_are_refused() -> None:
    rules = Cleaning(whitespace=True, totals=False, refusals=False, missing=False, min_mass=0.5)
    with pytest.raises(UserError, match="'yes' appears twice"):
        build_survey([row(options=("yes", " yes"))], rules, 1e-3, repeats="error")


def test_nothing_left_is_an_error() -> None:
    with pytest.raises(UserError, match="no usable answer is left"):
        survey_of()
    with pytest.raises(UserError, match="read_badly"):
        survey_of(dropped={"read_badly": 4})


def test_ten_thousand_rows_take_well_under_a_second() -> None:
    rows = [row(group=f"g{i % 50}", question=f"q{i // 50}?", options=("a", "b", "c", "d"), distribution=[0.25] * 4)
            for i in range(10_000)]  # fmt: skip
    start = time.process_time()
    survey = survey_of(*rows)
    assert time.process_time() - start < 1.0
    assert sum(len(group) for group in survey.answers.values()) == 10_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group": ""}, "'group' holds ''"),
        ({"group": None}, "'group' holds None"),
        ({"question": "  "}, "'question' holds '  '"),
        ({"question": ["a"]}, "'question' holds"),
        ({"options": "yes,no"}, "'options' holds 'yes,no'; it must be a list"),
        ({"options": ["yes", ""]}, "'options' holds ''"),
        ({"distribution": 0.5}, "'distribution' holds '0.5'; it must be a list"),
        ({"distribution": ["0.5", "0.5"]}, "'distribution' holds '0.5'; every share must be a number"),
        ({"distribution": [True, False]}, "'distribution' holds True"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(changes: dict[str, Any], message: str) -> None:
    record = {"group": "n", "question": "Tea?", "options": ["yes", "no"], "distribution": [0.5, 0.5], **changes}
    with pytest.raises(UserError) as error:
        parse_row(record, "s.csv row 2", "group")
    assert str(error.value).startswith("s.csv row 2: ")
    assert message in str(error.value)


def test_numbers_may_be_groups_and_options() -> None:
    record = {"group": 3, "question": "How many?", "options": [1, 2.5], "distribution": [0, 1]}
    assert parse_row(record, "s", "group") == AnswerRow("s", "3", "How many?", ("1", "2.5"), [0.0, 1.0])
