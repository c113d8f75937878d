"""GlobalOpinionQA in its three forms: the published CSV, a survey file by country, and the hub."""

from __future__ import annotations

import csv
from collections import Counter
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

ALL_RULES = {"whitespace": True, "totals": True, "refusals": True, "missing": True, "min_mass": 0.5}
OPTIONS = "['Very good', 'Bad', 'DK/Refused']"


@pytest.fixture
def publish(tmp_path: Path) -> Callable[..., Path]:
    """Write rows of (question, selections, options) as the published CSV does."""

    def to_csv(*rows: tuple[str, str, str]) -> Path:
        path = tmp_path / "global_opinions.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["question", "selections", "options", "source"])
            writer.writerows([*row, "GAS"] for row in rows)
        return path

    return to_csv


def load(make: Make, path: Path | None, **changes: Any) -> Survey:
    keys = {"path": None if path is None else str(path), "cleaning": ALL_RULES, **changes}
    source = make("data/global_opinions", **keys)
    survey: Survey = source.load(Streams(0))
    return survey


def selections(**countries: list[float]) -> str:
    return f"defaultdict(<class 'list'>, {countries!r})"


def test_the_published_form(make: Make, publish: Callable[..., Path]) -> None:
    path = publish(("How is\nit?", selections(Chile=[0.2, 0.6, 0.2], Egypt=[0.5, 0.5, 0.0]), OPTIONS))
    survey = load(make, path)
    question = Question("How is it?", ("Very good", "Bad"))
    assert list(survey.questions.values()) == [question]
    np.testing.assert_allclose(survey.answers["Chile"][question.id], [0.25, 0.75])
    np.testing.assert_allclose(survey.answers["Egypt"][question.id], [0.5, 0.5])
    assert survey.dropped == {"refusal_option": 2}


def test_a_plain_dict_and_names_with_brackets_are_read(make: Make, publish: Callable[..., Path]) -> None:
    name = "India (Current national sample)"
    survey = load(make, publish(("Q?", f"{{{name!r}: [0.5, 0.5]}}", "['a', \"b's\"]")))
    assert list(survey.answers) == [name]
    assert next(iter(survey.questions.values())).options == ("a", "b's")


def test_what_is_broken_in_the_published_form_is_dropped_and_counted(make: Make, publish: Callable[..., Path]) -> None:
    good = selections(Chile=[0.5, 0.5, 0.0])
    rows = [
        ("Q?", good, OPTIONS),
        ("", good, OPTIONS),
        ("No options?", good, "[]"),
        ("No options?", good, ""),
        ("Empty option?", good, "['a', '', 'b']"),
        ("Twice?", good, "['a', 'a', 'b']"),
        ("Zero?", selections(Chile=[0.0, 0.0, 0.0], Egypt=[]), OPTIONS),
        ("Wrong?", selections(Chile=[0.5, 0.5], Egypt=[0.5, 0.4, 0.0], Kenya=[1.5, -0.5, 0.0]), OPTIONS),
        ("Q?", selections(Chile=[0.9, 0.1, 0.0]), OPTIONS),
    ]
    survey = load(make, publish(*rows))
    expected = {
        "question_empty": 1,
        "options_empty": 3,
        "options_repeated": 1,
        "answer_all_zero": 2,
        "answer_malformed": 3,
        "refusal_option": 2,
        "repeated_answer": 1,
    }
    assert survey.dropped == expected
    assert {group: len(own) for group, own in survey.answers.items()} == {"Chile": 1}
    np.testing.assert_allclose(next(iter(survey.answers["Chile"].values())), [0.5, 0.5])


@pytest.mark.parametrize(
    ("chosen", "options", "message"),
    [
        ("{'Chile': __import__('os').getcwd()}", OPTIONS, "'selections' holds"),
        ("{'Chile': [0.5,", OPTIONS, "'selections' holds"),
        ("[0.5, 0.5, 0.0]", OPTIONS, "'selections' holds"),
        ("{'Chile': 0.5}", OPTIONS, "it must be a list of shares"),
        ("{'Chile': ['a', 'b', 'c']}", OPTIONS, "it must be a list of shares"),
        ("{'Chile': [0.5, 0.5, 0.0]}", "('a', 'b', 'c')", "'options' holds"),
        ("{'Chile': [0.5, 0.5, 0.0]}", "[open('x'), 'b', 'c']", "'options' holds"),
    ],
)
def test_cells_are_parsed_and_never_run(
    make: Make, publish: Callable[..., Path], chosen: str, options: str, message: str
) -> None:
    path = publish(("Q?", chosen, options))
    with pytest.raises(UserError) as error:
        load(make, path)
    assert message in str(error.value)
    assert str(error.value).startswith(f"{path} row 1: ")


def test_the_form_by_country(make: Make, write: Write) -> None:
    row = {"country": "Chile", "question": "Q?", "options": ["a", "b"], "distribution": [0.25, 0.75]}
    survey = load(make, write("part.jsonl.gz", [row, {**row, "country": "Egypt"}]))
    assert list(survey.answers) == ["Chile", "Egypt"]
    with pytest.raises(UserError, match=r"part.jsonl line 1: 'distribution' sums to 1.2"):
        load(make, write("part.jsonl", [{**row, "distribution": [0.6, 0.6]}]))
    with pytest.raises(UserError, match=r"no column 'country'"):
        load(make, write("other.jsonl", [{**{k: v for k, v in row.items() if k != "country"}, "group": "Chile"}]))


def test_groups_are_kept_in_the_order_given(make: Make, write: Write) -> None:
    row = {"question": "Q?", "options": ["a", "b"], "distribution": [0.25, 0.75]}
    rows = [{"country": name, **row} for name in ("Chile", "Egypt", "Kenya")]
    rows.append({**rows[0], "question": "Only in Chile?"})
    path = write("part.jsonl", rows)
    survey = load(make, path, groups=["Kenya", "Egypt"])
    assert list(survey.answers) == ["Kenya", "Egypt"]
    assert [question.text for question in survey.questions.values()] == ["Q?"]
    with pytest.raises(UserError, match=r"data.groups: no country 'Kenia' in the data; did you mean 'Kenya'\?"):
        load(make, path, groups=["Kenia"])


def test_the_sum_tolerance_is_used(make: Make, publish: Callable[..., Path]) -> None:
    path = publish(("Q?", selections(Chile=[0.5, 0.47, 0.0], Egypt=[0.5, 0.5, 0.0]), OPTIONS))
    assert load(make, path).dropped["answer_malformed"] == 1
    assert "answer_malformed" not in load(make, path, sum_tolerance=0.04).dropped


def test_the_hub_out_of_reach_ends_in_one_line(make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match=r"data.path: the dataset 'Anthropic/llm_global_opinions' is not cached"
    ) as error:
        load(make, None)
    assert "\n" not in str(error.value)


@pytest.mark.data
def test_the_real_part(make: Make, real_data: Callable[[str], Path]) -> None:
    path = real_data("global_opinion_qa/global_opinion_qa_part.jsonl.gz")
    off = dict.fromkeys(ALL_RULES, False) | {"min_mass": 0.5}
    raw, clean = load(make, path, cleaning=off), load(make, path)
    assert raw.dropped == {}
    assert sum(len(own) for own in raw.answers.values()) == 10_416
    assert (len(raw.answers), len(raw.questions)) == (130, 1_773)
    split = make("partition/pluralllm")
    countries = sorted((*split.train, *split.unseen))
    counts = {name: len(raw.answers[name]) for name in countries}
    assert counts == {
        "Argentina": 179,
        "Australia": 147,
        "Brazil": 244,
        "Canada": 148,
        "China": 180,
        "Egypt": 154,
        "France": 247,
        "Germany": 264,
        "India (Current national sample)": 116,
        "Japan": 178,
        "New Zealand": 36,
        "Nigeria": 240,
        "Spain": 215,
        "United States": 360,
    }
    texts = Counter(option for question in clean.questions.values() for option in question.options)
    assert not [option for option in texts if "refused" in option.lower() or option.lower().startswith("missing")]
    assert clean.dropped["total_option"] == 23
    assert clean.dropped["refusal_option"] == 8_023
    assert clean.dropped["missing_option"] == 2_328
    assert sum(len(own) for own in clean.answers.values()) == 10_416 - 13 - 1
