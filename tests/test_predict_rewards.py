"""Responses of a file, scored and ranked by what a run's reward model learnt, or by the reward it was given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedalign.cli import main
from fedalign.errors import UserError
from fedalign.methods.text_reward import Tone
from fedalign.predict import predict
from tests.tiny import use_cache
from tests.tiny_alignment import aligned_run, given_reward_run
from tests.tiny_policy import language_model_of

ROWS = [
    {"prompt": "the film was", "responses": ["good", "bad and dull", " fine"]},
    {"prompt": "I liked", "responses": ["it very"]},
]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


@pytest.fixture(autouse=True)
def _own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_cache(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def save(rows: list[dict[str, Any]], name: str = "responses.jsonl") -> Path:
    Path(name).write_text("\n".join(json.dumps(row) for row in rows))
    return Path(name)


def test_a_reward_model_ranks_as_its_exported_parts_do(base: Path) -> None:
    run, folder = aligned_run(base), language_model_of(base)
    place = run / "model" / "reward_adapter"
    network = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), place).eval()
    head, tokenizer = load_file(place / "head.safetensors"), AutoTokenizer.from_pretrained(folder)
    for row, prediction in zip(ROWS, predict(run, save(ROWS)), strict=True):
        known = {}
        for response in row["responses"]:
            ids = tokenizer(f"{row['prompt']} {response}", return_tensors="pt")["input_ids"]
            ids = torch.cat([ids, torch.zeros(1, 1, dtype=torch.int64)], 1)
            with torch.no_grad():
                hidden = network(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, -1]
            known[response] = float(head["weight"][0] @ hidden + head["bias"][0])
        assert list(prediction.options) == sorted(known, key=lambda response: -known[response])
        assert prediction.shares == pytest.approx(sorted(known.values(), reverse=True), abs=1e-5)
        assert prediction.question == row["prompt"]


def test_a_given_reward_ranks_responses(base: Path) -> None:
    rows = [{"prompt": "The acting was", "responses": ["dull.", "brilliant and brilliant.", "brilliant."]}]
    (prediction,) = predict(given_reward_run(base), save(rows))
    assert list(prediction.options) == ["brilliant and brilliant.", "brilliant.", "dull."]
    tone = Tone(limit=3.0, filler=0.5)
    assert list(prediction.shares) == tone.score([""] * 3, prediction.options).tolist()


def test_conversations_and_tables_are_read(base: Path) -> None:
    talk = [{"role": "user", "content": "How was it?"}]
    (prediction,) = predict(given_reward_run(base), save([{"prompt": talk, "responses": ["dull", "brilliant"]}]))
    assert prediction.question == "Human: How was it?\n\nAssistant:"
    Path("responses.csv").write_text('prompt,responses\nIt was,"[""dull"", ""brilliant""]"\n')
    (prediction,) = predict(given_reward_run(base), Path("responses.csv"))
    assert prediction.options == ("brilliant", "dull")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a"}, "responses"),
        ({"prompt": "a", "responses": "b"}, "'responses' holds 'b'; it must be a list of texts"),
        ({"prompt": "a", "responses": []}, "must be a list of texts"),
        ({"prompt": "a", "responses": [1]}, "'responses' holds '1'; it must be a text"),
        ({"prompt": "a", "responses": ["b", " "]}, "'responses' holds an empty text; leave it out"),
        ({"prompt": 3, "responses": ["b"]}, "'prompt' holds '3'; it must be a text"),
    ],
)
def test_a_mistake_names_file_and_row(base: Path, row: dict[str, Any], message: str) -> None:
    run = given_reward_run(base)
    with pytest.raises(UserError, match=message) as caught:
        predict(run, save([row]))
    assert "responses.jsonl" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_without_a_reward_scores_nothing(base: Path) -> None:
    with pytest.raises(UserError, match="this run has no reward"):
        predict(given_reward_run(base, "method.rl=null", "method.reward=null"), save(ROWS))


def test_the_command(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(ROWS)
    assert main(["predict", str(aligned_run(base)), "responses.jsonl", "--out", "ranked.json"]) == 0
    shown = capsys.readouterr().out
    rows = json.loads((tmp_path / "ranked.json").read_text())
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in ROWS]
    assert all(f"{reward:.3f}" in shown for row in rows for reward in row["rewards"])
    assert main(["predict", str(aligned_run(base)), "nowhere.jsonl"]) == 2
    assert "nowhere.jsonl" in capsys.readouterr().err
