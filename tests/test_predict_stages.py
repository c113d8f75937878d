"""Texts of an aligned language model: stage by stage, with rewards, and mistakes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from fedalign.cli import main
from fedalign.errors import UserError
from fedalign.methods.text_reward import Tone
from fedalign.models.text import TextCodec
from fedalign.predict import Text, TextRequest, write
from fedalign.predict_stages import StageText
from tests.tiny import use_cache
from tests.tiny_alignment import aligned_run, given_reward_run
from tests.tiny_policy import language_model_of, policy_run

ASK = TextRequest(("the film was", "I liked"), (), (), None, None, None, (), False)
GREEDY = replace(ASK, temperature=0.0)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


@pytest.fixture(scope="session")
def aligned(base: Path) -> Path:
    return aligned_run(base)


@pytest.fixture(autouse=True)
def _own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_cache(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def of_stage(found: Sequence[Text], stage: str) -> list[str]:
    return [text.text for text in found if isinstance(text, StageText) and text.stage == stage]


def test_by_default_the_last_policy_writes_and_a_seed_repeats_it(aligned: Path) -> None:
    found = write(aligned, ASK)
    assert [(text.prompt, text.label) for text in found] == [(prompt, "rl") for prompt in ASK.prompts]
    assert write(aligned, ASK) == found
    assert write(aligned, replace(ASK, seed=0)) == found
    assert write(aligned, replace(ASK, seed=5)) != found


def test_stages_stand_side_by_side_prompt_by_prompt_and_each_as_if_alone(aligned: Path) -> None:
    stages = ("pretrained", "sft", "rl")
    found = write(aligned, replace(ASK, stages=stages))
    assert [(t.prompt, t.label) for t in found] == [(prompt, stage) for prompt in ASK.prompts for stage in stages]
    for stage in stages:
        assert of_stage(found, stage) == of_stage(write(aligned, replace(ASK, stages=(stage,))), stage)
    assert len({tuple(of_stage(found, stage)) for stage in stages}) == 3


def test_greedy_texts_are_those_of_transformers_with_the_exported_adapter(base: Path, aligned: Path) -> None:
    found = write(aligned, replace(GREEDY, stages=("pretrained", "rl")))
    folder = language_model_of(base)
    codec = TextCodec(str(folder), "model")
    # By hand, a token at a time and without padding.
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    trained = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), aligned / "model" / "adapter")
    for stage, network in (("pretrained", plain), ("rl", trained.eval())):
        for prompt, text in zip(ASK.prompts, of_stage(found, stage), strict=True):
            ids, _ = codec.prompts([prompt], 8)
            start = ids.shape[1]
            with torch.no_grad():
                while ids.shape[1] < start + 6 and (ids.shape[1] == start or ids[0, -1] != 0):
                    ids = torch.cat([ids, network(input_ids=ids).logits[:, -1:].argmax(2)], 1)
            assert codec.decode(ids[:, start:]) == [text]


def test_length_is_heard(aligned: Path) -> None:
    assert max(len(text.shown.split()) for text in write(aligned, replace(ASK, max_new_tokens=2))) <= 2


def test_a_given_reward_scores_what_was_written(base: Path) -> None:
    run = given_reward_run(base)
    found = write(run, replace(ASK, stages=("sft", "rl"), score=True))
    tone = Tone(limit=3.0, filler=0.5)
    for text in found:
        assert isinstance(text, StageText)
        assert text.reward == tone.score([text.prompt], [text.text]).item()
        assert text.to_json()["reward"] == text.reward
    assert all("reward" not in text.to_json() for text in write(run, ASK))


def test_a_run_that_stopped_after_fine_tuning_is_served_by_it(base: Path) -> None:
    run = given_reward_run(base, "method.rl=null")
    assert {text.label for text in write(run, ASK)} == {"sft"}
    # Nothing was trained with a temperature: that of evaluations.
    assert write(run, ASK) == write(run, replace(ASK, temperature=1.0))


def test_a_run_without_a_policy_has_the_model_as_it_was_found(base: Path) -> None:
    run = aligned_run(base, "method.sft=null", "method.rl=null")
    with pytest.raises(UserError, match=r"this run trained no policy, .*--stage pretrained"):
        write(run, ASK)
    assert {text.label for text in write(run, replace(ASK, stages=("pretrained",), score=True))} == {"pretrained"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": ("rll",)}, "--stage=rll: this run has no policy of that stage; did you mean 'rl'"),
        ({"stages": ("reward",)}, "--stage=reward: this run has no policy of that stage"),
        ({"preferences": ("praise",)}, "takes no preference; .*choose among its stages with --stage"),
        ({"dials": ("a:b:0",)}, "takes no preference"),
        ({"temperature": -1.0}, "--temperature=-1: must be 0"),
        ({"temperature": float("nan")}, "--temperature=nan: must be 0"),
        ({"max_new_tokens": 0}, "--max-new-tokens=0: must be 1 or more"),
        ({"max_new_tokens": 100}, "max_new_tokens=100: .* the model reads 64"),
    ],
)
def test_a_mistake_is_named_in_one_line(aligned: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        write(aligned, replace(ASK, **change))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_reward_that_is_not_there_is_a_mistake(base: Path) -> None:
    run = given_reward_run(base, "method.rl=null", "method.reward=null")
    with pytest.raises(UserError, match=r"this run has no reward, .* method=dprlhf_preferences"):
        write(run, replace(ASK, score=True))


@pytest.mark.parametrize("change", [{"stages": ("sft",)}, {"score": True}])
def test_policies_that_follow_preferences_have_no_stages(base: Path, change: dict[str, object]) -> None:
    with pytest.raises(UserError, match="--stage and --score are for runs of method=dprlhf"):
        write(policy_run(base), replace(ASK, **change))  # type: ignore[arg-type]


def test_the_command_shows_stages_side_by_side_and_writes_them(
    aligned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--prompt", "the film was", "--stage", "pretrained", "--stage", "rl", "--score", "--seed", "3"]
    assert main(["predict", str(aligned), *asked, "--out", "texts.json"]) == 0
    shown = capsys.readouterr().out
    rows = json.loads((tmp_path / "texts.json").read_text())
    assert [row["stage"] for row in rows] == ["pretrained", "rl"]
    assert all(name in shown for name in ("pretrained", "rl", *(f"(reward {row['reward']:.3f})" for row in rows)))
    assert main(["predict", str(aligned), "--prompt", "the film", "--stage", "stf"]) == 2
    assert "did you mean 'sft'" in capsys.readouterr().err
