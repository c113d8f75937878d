"""Predicting a new group's answers from a file with a few of them."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedalign import predict as predicting
from fedalign.config import parse, resolve
from fedalign.errors import UserError
from fedalign.methods.base import Method, Phase, Setting
from fedalign.predict import Prediction, predict
from fedalign.rng import Streams
from tests.tiny import DATA, trained_run, use_cache

Row = dict[str, Any]

TOLD: list[Row] = [
    {"question": "How good is tea?", "options": ["good", "bad", "unsure"], "distribution": [0.6, 0.3, 0.1]},
    {"question": "How good is milk?", "options": ["good", "bad"], "distribution": [0.2, 0.8]},
]
ASKED: list[Row] = [
    {"question": "How good is rain?", "options": ["good", "bad", "unsure"]},
    {"question": "How good is snow?", "options": ["good", "bad"], "distribution": None},
    {"question": "How good is hail?", "options": ["a", "b", "c", "d"], "distribution": []},
]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_run(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def averaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_run(tmp_path_factory.getbasetemp(), "method=question_mean")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_cache(tmp_path, monkeypatch)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Sequence[Row]], Path]:
    def jsonl(rows: Sequence[Row]) -> Path:
        path = tmp_path / "answers.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in rows))
        return path

    return jsonl


Write = Callable[[Sequence[Row]], Path]


def shares(predictions: Sequence[Prediction]) -> list[float]:
    return [share for prediction in predictions for share in prediction.shares]


def test_every_asked_question_gets_a_distribution_in_the_order_of_the_file(trained: Path, write: Write) -> None:
    predictions = predict(trained, write([ASKED[0], TOLD[0], ASKED[1], TOLD[1], ASKED[2]]))
    assert [p.question for p in predictions] == [row["question"] for row in ASKED]
    assert [list(p.options) for p in predictions] == [row["options"] for row in ASKED]
    for prediction in predictions:
        assert sum(prediction.shares) == pytest.approx(1)
        assert min(prediction.shares) > 0


def test_neither_the_order_of_the_answers_nor_other_questions_matter(trained: Path, write: Write) -> None:
    alone = predict(trained, write([*TOLD, ASKED[0]]))
    assert shares(predict(trained, write([*TOLD[::-1], ASKED[0]]))) == pytest.approx(shares(alone), abs=1e-5)
    assert shares(predict(trained, write([*TOLD, *ASKED]))[:1]) == pytest.approx(shares(alone), abs=1e-5)


def test_the_answers_matter(trained: Path, write: Write) -> None:
    other = [{**TOLD[0], "distribution": [0.0, 0.1, 0.9]}, TOLD[1]]
    told = shares(predict(trained, write([*TOLD, *ASKED])))
    assert np.abs(np.subtract(told, shares(predict(trained, write([*other, *ASKED]))))).max() > 1e-6


def test_shares_that_were_rounded_are_brought_to_one(trained: Path, write: Write) -> None:
    rounded = [{**TOLD[0], "distribution": [0.6003, 0.3, 0.1]}, TOLD[1], ASKED[0]]
    exact = [{**TOLD[0], "distribution": [0.6003 / 1.0003, 0.3 / 1.0003, 0.1 / 1.0003]}, TOLD[1], ASKED[0]]
    assert shares(predict(trained, write(rounded))) == pytest.approx(shares(predict(trained, write(exact))), abs=1e-6)


def test_csv_and_parquet_are_read_too(trained: Path, tmp_path: Path, write: Write) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [*TOLD, *ASKED]
    expected = shares(predict(trained, write(rows)))
    with (tmp_path / "answers.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["question", "options", "distribution"])
        for row in rows:
            told = row.get("distribution")
            table.writerow([row["question"], json.dumps(row["options"]), json.dumps(told) if told else ""])
    assert shares(predict(trained, tmp_path / "answers.csv")) == expected
    columns = {name: [row.get(name) for row in rows] for name in ("question", "options", "distribution")}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "answers.parquet")
    assert shares(predict(trained, tmp_path / "answers.parquet")) == expected


def test_the_question_mean_predicts_what_the_training_groups_said(averaged: Path, write: Write) -> None:
    """Against the survey itself, question by question."""
    config = parse(resolve([*DATA, "method=question_mean"]))
    survey = config.data.load(Streams(0))  # type: ignore[attr-defined]
    clients = [c for c in config.partition.split(survey, Streams(0)) if c.role == "train"]
    questions = [q for q in survey.questions if all(q in survey.answers[c.name] for c in clients)][:3]
    asked = [{"question": survey.questions[q].text, "options": list(survey.questions[q].options)} for q in questions]
    predictions = predict(averaged, write([TOLD[0], *asked, ASKED[2]]))
    for question, prediction in zip(questions, predictions, strict=False):
        rows = [c.answers[c.name][question] for c in clients if question not in c.test[c.name]]
        mean = (sum(rows) + 0.5 / len(prediction.options)) / (len(rows) + 0.5)
        assert prediction.shares == pytest.approx(mean, abs=1e-5)
    assert predictions[-1].shares == pytest.approx([0.25] * 4)


def test_a_prediction_as_data_is_a_row_of_a_survey_file() -> None:
    assert Prediction("q", ("a", "b"), (0.25, 0.75)).to_json() == {
        "question": "q",
        "options": ["a", "b"],
        "distribution": [0.25, 0.75],
    }


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ASKED, "no question has a distribution; answer at least one"),
        (TOLD, r"every question has a distribution; leave it out \(null\) for those to predict"),
        ([*TOLD, *ASKED, ASKED[0]], "line 6: 'How good is rain\\?' stands twice"),
        ([*TOLD, {**TOLD[0], "distribution": None}], "stands twice; keep one row a question"),
        ([*TOLD, {"question": "Well?", "options": ["a"]}], r"1 option\(s\) in 'options'"),
        ([*TOLD, {"question": "Well?", "options": ["a", "a"]}], "option 'a' appears twice"),
        ([*TOLD, {"question": "Well?", "options": "a, b"}], "'options' holds 'a, b'; it must be a list"),
        ([*TOLD, {"question": "", "options": ["a", "b"]}], "it must be a text that is not empty"),
        ([*TOLD, {"options": ["a", "b"]}], "no column 'question'"),
        ([{**TOLD[0], "distribution": [0.5, 0.5]}, ASKED[0]], "3 options but 2 shares"),
        ([{**TOLD[0], "distribution": [0.5, 0.5, 0.5]}, ASKED[0]], "sums to 1.5; it must sum to 1"),
        ([{**TOLD[0], "distribution": [1.5, -0.5, 0.0]}, ASKED[0]], "negative share -0.5"),
        ([{**TOLD[0], "distribution": "much"}, ASKED[0]], "'distribution' holds 'much'; it must be a list"),
    ],
)
def test_a_malformed_file_is_refused_in_one_line(trained: Path, write: Write, rows: list[Row], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        predict(trained, write(rows))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("answers.jsonl", "{", "line 1: not JSON"),
        ("answers.txt", "", "unknown suffix '.txt'"),
        ("answers.csv", 'question,options,distribution\nWell?,"a, b",\n', "it must be a JSON list"),
        ("answers.parquet", "no", "not a readable Parquet file"),
    ],
)
def test_a_file_that_is_not_what_it_says_is_refused(
    trained: Path, tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        predict(trained, tmp_path / name)


def test_the_run_and_the_file_must_be_there(trained: Path, tmp_path: Path, write: Write) -> None:
    with pytest.raises(UserError, match="no such directory; give the directory of a run"):
        predict(tmp_path / "nowhere", write([*TOLD, *ASKED]))
    with pytest.raises(UserError, match="no such file"):
        predict(trained, tmp_path / "nowhere.jsonl")


def test_an_unfinished_run_predicts_nothing(trained: Path, tmp_path: Path, write: Write) -> None:
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "model" / "model.json").unlink()
    with pytest.raises(UserError, match="no finished model there"):
        predict(tmp_path / "run", write([*TOLD, *ASKED]))


def test_the_model_must_be_the_configured_method_s(trained: Path, tmp_path: Path, write: Write) -> None:
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "model" / "model.json").write_text('{"method": "uniform", "phases": []}')
    with pytest.raises(UserError, match="a model of method 'uniform', not of 'pluralllm'"):
        predict(tmp_path / "run", write([*TOLD, *ASKED]))


class Writer(Method):
    """A method that predicts no answers."""

    name = "writer"
    headline = selection = "none"

    def phases(self, setting: Setting) -> Sequence[Phase[Any]]:
        return []


def test_a_method_of_another_kind_is_refused(trained: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predicting, "parse", lambda resolved: dataclasses.replace(parse(resolved), method=Writer()))
    with pytest.raises(UserError, match="method 'writer' predicts nothing from a file"):
        predict(trained, write([*TOLD, *ASKED]))
