"""Artefacts go by their text alone, every rule can be switched off, and what stays is renormalised."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedalign.data.cleaning import Cleaning, clean_question, clean_shares, is_missing, is_refusal, is_total

ALL = Cleaning(whitespace=True, totals=True, refusals=True, missing=True, min_mass=0.5)
TOTAL = "Total                  N="


@pytest.mark.parametrize(
    "option",
    [
        "DK/Refused",
        "Don't know",
        "Don\u2019t know",
        "Don't know/Refused",
        "No answer",
        "No answer/refused",
        "Refused (VOL)",
        "Don't know (DO NOT READ)",
        "Refused or don't know",
        " DK ",
    ],
)
def test_refusals(option: str) -> None:
    assert is_refusal(option)
    assert not is_total(option)
    assert not is_missing(option)


@pytest.mark.parametrize(
    "option",
    [
        "Missing",
        "Missing; Unknown",
        "Missing; Not available; Not applicable",
        "Missing; Not applicable for other reasons",
        "Other missing; Multiple answers Mail (EVS)",
        "INAP: No internet/no social media",
        "Not applicable",
        "Not asked in survey",
    ],
)
def test_missing_codes(option: str) -> None:
    assert is_missing(option)
    assert not is_refusal(option)


@pytest.mark.parametrize("option", [TOTAL, "Total N=", "total (n) = 1002"])
def test_totals(option: str) -> None:
    assert is_total(option)


@pytest.mark.parametrize(
    "option",
    [
        "Hard to say",
        "Neither (VOL)",
        "Both (DO NOT READ)",
        "Depends on the situation (VOL)",
        "I do not know examples concerned",
        "Never heard of",
        "None at all",
        "No",
        "Not at all important",
        "Refused refugees should return",
        "Missing persons",
        "Inapt",
        "Total ban",
        "Do not trust at all",
        "Yes, I know someone",
        "Other (VOL)",
    ],
)
def test_answers_stay(option: str) -> None:
    assert not (is_refusal(option) or is_missing(option) or is_total(option))


@pytest.mark.parametrize(
    ("rule", "option", "count"),
    [
        ("totals", TOTAL, "total_option"),
        ("refusals", "DK/Refused", "refusal_option"),
        ("missing", "Missing; Unknown", "missing_option"),
    ],
)
def test_each_rule_can_be_switched_off(rule: str, option: str, count: str) -> None:
    options = ("Yes", "No", option)
    on, off = (clean_question("Q?", options, replace(ALL, **{rule: switch})) for switch in (True, False))
    assert on.question is not None and off.question is not None
    assert on.question.options == ("Yes", "No") and on.removed == Counter({count: 1})
    assert off.question.options == ("Yes", "No", " ".join(option.split())) and not off.removed


def test_whitespace_can_be_left_alone() -> None:
    spaced = (" A  question ", (" Yes", "No\n"))
    on, off = clean_question(*spaced, ALL).question, clean_question(*spaced, replace(ALL, whitespace=False)).question
    assert on is not None and off is not None
    assert (on.text, on.options) == ("A question", ("Yes", "No"))
    assert (off.text, off.options) == spaced


def test_a_total_gives_its_half_back() -> None:
    cleaned = clean_question("Q?", ("Yes", "No", "DK/Refused", TOTAL), ALL)
    shares = clean_shares(np.array([0.415, 0.08, 0.005, 0.5]), cleaned, min_mass=0.5)
    np.testing.assert_allclose(shares, [0.415 / 0.495, 0.08 / 0.495])


def test_min_mass_is_measured_without_the_total() -> None:
    cleaned = clean_question("Q?", ("Yes", "No", "Refused", TOTAL), ALL)
    answer = np.array([0.2, 0.1, 0.2, 0.5])  # 60 % of those who are counted once
    assert clean_shares(answer, cleaned, min_mass=0.59) is not None
    assert clean_shares(answer, cleaned, min_mass=0.61) is None


def test_an_answer_of_refusals_only_is_dropped() -> None:
    cleaned = clean_question("Q?", ("Yes", "No", "Refused"), ALL)
    assert clean_shares(np.array([0.0, 0.0, 1.0]), cleaned, min_mass=1e-9) is None


@pytest.mark.parametrize("options", [("Yes", "Refused"), ("Refused", "Don't know")])
def test_fewer_than_two_options_are_no_question(options: tuple[str, ...]) -> None:
    assert clean_question("Q?", options, ALL).question is None


@given(
    st.lists(
        st.sampled_from(["Yes", "No", "Maybe", "Both", "DK/Refused", "No answer", "Missing", TOTAL]),
        min_size=2,
        unique=True,
    ),
    st.randoms(use_true_random=False),
)
def test_what_stays_keeps_its_ratios_and_sums_to_one(options: list[str], random: object) -> None:
    weights = np.array([random.uniform(0.1, 1.0) for _ in options])  # type: ignore[attr-defined]
    shares = weights / weights.sum()
    cleaned = clean_question("Q?", tuple(options), ALL)
    expected = [i for i, option in enumerate(options) if option in {"Yes", "No", "Maybe", "Both"}]
    assert cleaned.kept.tolist() == expected
    assert (cleaned.question is None) == (len(expected) < 2)
    left = clean_shares(shares, cleaned, min_mass=1e-12)
    if expected:
        np.testing.assert_allclose(left, weights[expected] / weights[expected].sum())
