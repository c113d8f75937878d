"""Predicting a new person's choices from a file with a few judgments."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedalign.errors import UserError
from fedalign.predict import predict
from fedalign.predict_pairs import PairPrediction, read_person
from fedalign.run import start
from tests.tiny import trained_run, use_cache
from tests.tiny_policy import PAIRS

Row = dict[str, Any]
Write = Callable[[Sequence[Row]], Path]

JUDGED: list[Row] = [
    {"prompt": "The acting", "chosen": " was brilliant.", "rejected": " was dull."},
    {"prompt": "The plot", "chosen": " was superb.", "rejected": " was awful."},
    {"prompt": "The music", "chosen": " was lovely.", "rejected": " was bad."},
]
ASKED: list[Row] = [
    {"prompt": "The ending", "responses": [" was great.", " was boring."]},
    {"prompt": "The cast", "responses": [" was poor.", " was perfect."], "chosen": None, "rejected": None},
]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose selector has learnt something."""
    base = tmp_path_factory.getbasetemp()
    directory = base / "selector"
    if not (directory / "summary.json").is_file():
        with pytest.MonkeyPatch.context() as patch:
            use_cache(base, patch)
            start([
                "method=fedvpa", *PAIRS, "method.prior._target_=fedalign.methods.latent_prior.StandardPrior",
                "method.divergence.form=standard", "method.prototypes=null", "federation.rounds=2",
                f"output={directory}",
            ])  # fmt: skip
    return directory


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_cache(tmp_path, monkeypatch)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def jsonl(rows: Sequence[Row]) -> Path:
        path = tmp_path / "judgments.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in rows))
        return path

    return jsonl


def probabilities(run: Path, path: Path) -> list[float]:
    return [prediction.shares[0] for prediction in predict(run, path)]


def test_every_open_choice_gets_a_probability_in_the_order_of_the_file(trained: Path, write: Write) -> None:
    found = predict(trained, write([ASKED[0], *JUDGED, ASKED[1]]))
    assert [p.question for p in found] == ["The ending", "The cast"]
    assert [list(p.options) for p in found] == [row["responses"] for row in ASKED]
    assert all(0 < p.shares[0] < 1 and sum(p.shares) == pytest.approx(1) for p in found)


def test_judgments_matter_but_neither_their_order_nor_other_choices(trained: Path, write: Write) -> None:
    alone = probabilities(trained, write([*JUDGED, ASKED[0]]))
    assert probabilities(trained, write([*JUDGED[::-1], *ASKED]))[:1] == pytest.approx(alone, abs=1e-5)
    turned = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in JUDGED]
    assert np.abs(np.subtract(probabilities(trained, write([*turned, ASKED[0]])), alone)).max() > 1e-6


def test_turned_round_a_choice_has_the_opposite_probability(trained: Path, write: Write) -> None:
    turned = {**ASKED[0], "responses": ASKED[0]["responses"][::-1]}
    one, other = probabilities(trained, write([*JUDGED, ASKED[0], turned]))
    assert one + other == pytest.approx(1, abs=1e-6)


def test_csv_and_conversations_are_read_too(trained: Path, tmp_path: Path, write: Write) -> None:
    expected = probabilities(trained, write([*JUDGED, *ASKED]))
    with (tmp_path / "judgments.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["prompt", "chosen", "rejected", "responses"])
        for row in [*JUDGED, *ASKED]:
            told = json.dumps(row["responses"]) if "responses" in row else ""
            table.writerow([row["prompt"], row.get("chosen") or "", row.get("rejected") or "", told])
    assert probabilities(trained, tmp_path / "judgments.csv") == expected
    spoken = [[{"role": "assistant", "content": text}] for text in ASKED[0]["responses"]]
    assert probabilities(trained, write([*JUDGED, {**ASKED[0], "responses": spoken}])) == expected[:1]


def test_a_prediction_as_data() -> None:
    prediction = PairPrediction("p", ("a", "b"), (0.25, 0.75))
    assert prediction.to_json() == {"prompt": "p", "responses": ["a", "b"], "probability": 0.25}


def test_what_was_judged_is_cleaned_as_data_are(write: Write) -> None:
    equal = {**JUDGED[0], "rejected": JUDGED[0]["chosen"]}
    known, wanted = read_person(write([*JUDGED, equal, JUDGED[0], ASKED[0]]))
    assert [pair.prompt for pair in known] == ["The acting", "The plot", "The music"]
    assert [(pair.chosen, pair.rejected) for pair in wanted] == [(" was great.", " was boring.")]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ASKED, "no judgment is given; add rows with prompt, chosen and rejected"),
        (JUDGED, 'nothing is asked; add rows with "prompt" and "responses"'),
        ([*JUDGED, {"prompt": "Well"}], "line 4: 'responses' holds 'None'; .* needs a list of two"),
        ([*JUDGED, {"prompt": "Well", "responses": ["a"]}], "a row without 'chosen' needs a list of two there"),
        ([*JUDGED, {"prompt": "Well", "responses": ["a", "a"]}], "line 4: .* both responses are the same"),
        ([*JUDGED, {"prompt": "", "responses": ["a", "b"]}], "line 4: prompt or a response is empty"),
        ([*JUDGED, {"prompt": "Well", "responses": ["a", 1]}], "'rejected' holds '1'; it must be a text"),
        ([{"prompt": "Well", "chosen": "a"}, *ASKED], "line 1: no column 'rejected' beside 'chosen'"),
        ([*JUDGED, {"responses": ["a", "b"]}], "no column 'prompt'"),
    ],
)
def test_a_malformed_file_is_refused_in_one_line(trained: Path, write: Write, rows: list[Row], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        predict(trained, write(rows))
    assert "\n" not in str(caught.value)


def test_survey_runs_still_read_surveys(tmp_path_factory: pytest.TempPathFactory, write: Write) -> None:
    with pytest.raises(UserError, match="no column 'question'"):
        predict(trained_run(tmp_path_factory.getbasetemp()), write([*JUDGED, *ASKED]))
