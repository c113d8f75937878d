"""Texts under stated preferences: merged experts, weights and rewards of what they write, streams, and mistakes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedalign import predict_stated
from fedalign.cli import main
from fedalign.config import parse
from fedalign.errors import UserError
from fedalign.methods.control_phase import ControlPhase
from fedalign.methods.rollouts import uniform
from fedalign.opened_run import OpenedRun
from fedalign.predict import Text, TextRequest, write
from fedalign.report.run_directory import RunDirectory
from fedalign.rng import Streams
from fedalign.stated_texts import StatedText, weights_page
from tests.tiny import use_cache
from tests.tiny_alignment import given_reward_run
from tests.tiny_pcm import other_run, pcm_run

BOTH = ("praise, ornate", "praise=0.7,short=0.3")
NAMES = ("long", "short", "plain", "ornate", "praise", "criticism")
ASK = TextRequest(("the film was", "I liked"), BOTH, (), None, None, None, (), False)
ONE = replace(ASK, prompts=("I liked",), preferences=("praise, short",))


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


@pytest.fixture(scope="session")
def merged(base: Path) -> Path:
    return pcm_run(base)


@pytest.fixture(autouse=True)
def _own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_cache(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def texts(found: Sequence[Text]) -> list[StatedText]:
    assert all(isinstance(text, StatedText) for text in found)
    return list(found)  # type: ignore[arg-type]


def weights(text: StatedText) -> torch.Tensor:
    assert text.shares is not None
    return torch.tensor(text.shares.weights)


def test_every_preference_is_served_prompt_by_prompt_and_a_seed_repeats_it(merged: Path) -> None:
    found = write(merged, ASK)
    assert [(text.prompt, text.label) for text in found] == [(p, label) for p in ASK.prompts for label in BOTH]
    assert write(merged, ASK) == found
    assert write(merged, replace(ASK, seed=0)) == found
    assert [text.text for text in texts(write(merged, replace(ASK, seed=5)))] != [text.text for text in texts(found)]


def test_texts_are_those_of_the_phase_under_the_same_draws(merged: Path) -> None:
    directory = RunDirectory.open(merged)
    run = OpenedRun.of(directory, parse(directory.read_config()))
    phase = run.phases[-1]
    assert isinstance(phase, ControlPhase)
    seeds = Streams(0).numpy("predictions/text").integers(2**62, size=2).tolist()
    vectors = torch.stack([phase.preferences.vector(label, "") for label in BOTH]).repeat(2, 1)
    prompts = [prompt for prompt in ASK.prompts for _ in BOTH]
    draws = uniform(seeds, 6).repeat_interleave(2, 0)
    wanted = phase.writer(run.states["control"]).write(prompts, vectors, draws)
    found = texts(write(merged, ASK))
    assert [text.text for text in found] == wanted.texts
    assert wanted.log_weights is not None
    for text, log_weights in zip(found, wanted.log_weights, strict=True):
        own = weights(text)
        torch.testing.assert_close(own, log_weights.exp()[: len(own)], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("batch", [1, 3])
def test_batches_change_nothing(merged: Path, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    whole = texts(write(merged, ASK))
    monkeypatch.setattr(predict_stated, "BATCH", batch)
    parts = texts(write(merged, ASK))
    assert [text.text for text in parts] == [text.text for text in whole]
    alone = texts(write(merged, replace(ASK, preferences=BOTH[1:])))
    assert [text.text for text in alone] == [text.text for text in whole][1::2]


def test_weights_are_over_the_wanted_experts_and_follow_the_pieces(merged: Path) -> None:
    for text in texts(write(merged, ASK)):
        own = weights(text)
        assert text.shares is not None
        assert text.shares.experts == NAMES
        assert "".join(text.shares.pieces) == text.text
        assert len(own) == len(text.shares.pieces) <= 6
        torch.testing.assert_close(own.sum(1), torch.ones(len(own)))
        wanted = ["praise", "ornate"] if text.label == BOTH[0] else ["praise", "short"]
        assert {name for name, share in text.shares.mean.items() if share > 0} == set(wanted)
        told = text.to_json()
        assert told["tokens"] == list(text.shares.pieces)
        praise = own[:, NAMES.index("praise")]
        assert told["mean_weights"]["praise"] == pytest.approx(praise.mean().item())
        assert told["weights"]["praise"] == pytest.approx(praise.tolist())


def test_who_states_nothing_has_the_weights_for_everybody(merged: Path) -> None:
    found = texts(write(merged, replace(ASK, preferences=())))
    assert {text.label for text in found} == {"everybody"}
    torch.testing.assert_close(weights(found[0]), torch.full_like(weights(found[0]), 1 / 6))
    stated = texts(write(merged, replace(ASK, preferences=("all",))))
    assert [text.text for text in stated] == [text.text for text in found]


def test_the_ends_of_a_dial_are_its_statements(merged: Path) -> None:
    dials = tuple(f"praise, short:criticism, ornate:{place}" for place in ("0", "0.5", "1"))
    found = texts(write(merged, replace(ASK, preferences=("praise, short", "criticism, ornate"), dials=dials)))
    for prompt in (0, 1):
        first, last, *turned = (text.text for text in found[5 * prompt : 5 * prompt + 5])
        assert (turned[0], turned[2]) == (first, last)
    between = next(text for text in found if text.label == dials[1])
    assert {name for name, share in between.to_json()["mean_weights"].items() if share > 0} == set(NAMES) - {
        "plain",
        "long",
    }


def test_length_and_temperature_are_heard(merged: Path) -> None:
    assert all(len(weights(text)) <= 2 for text in texts(write(merged, replace(ASK, max_new_tokens=2))))
    longer = texts(write(merged, replace(ASK, max_new_tokens=20, temperature=2.0)))
    assert max(len(weights(text)) for text in longer) > 6
    greedy = replace(ASK, temperature=0.0)
    assert write(merged, greedy) == write(merged, replace(greedy, seed=5))


def test_rewards_are_the_run_s_by_side_and_combined(merged: Path) -> None:
    found = texts(write(merged, replace(ASK, preferences=(*BOTH, "all"), score=True)))
    for text in found:
        assert text.rewards is not None
        told = text.to_json()
        assert told["rewards"] == text.rewards.sides
        if text.label == "all":
            assert tuple(text.rewards.sides) == NAMES
            assert text.rewards.combined is told["reward"] is None
            assert text.rewards.sides["long"] == pytest.approx(1 - text.rewards.sides["short"])
            continue
        shares = {"praise": 0.5, "ornate": 0.5} if text.label == BOTH[0] else {"praise": 0.7, "short": 0.3}
        assert set(text.rewards.sides) == set(shares)
        wanted = sum(text.rewards.sides[side] * share for side, share in shares.items())
        assert told["reward"] == pytest.approx(wanted)
        first = next(name for name in NAMES if name in shares)
        assert f"(reward {wanted:.3f}: {first} " in text.shown
    assert all("reward" not in text.to_json() for text in texts(write(merged, ASK)))


def test_what_is_streamed_is_the_text(merged: Path) -> None:
    pieces: list[str] = []
    (text,) = texts(write(merged, replace(ONE, on_piece=pieces.append)))
    assert "".join(pieces) == text.text
    assert len(pieces) > 1
    assert [text] == write(merged, ONE)


@pytest.mark.parametrize("method", ["pcm_soups", "pcm_single"])
def test_what_merging_is_compared_with_writes_as_well(base: Path, method: str) -> None:
    run = other_run(base, f"method={method}")
    found = texts(write(run, replace(ASK, score=True, max_new_tokens=3)))
    assert [(text.prompt, text.label) for text in found] == [(p, label) for p in ASK.prompts for label in BOTH]
    assert all(text.rewards is not None and text.shares is None for text in found)
    assert "weights" not in found[0].to_json()
    assert len(texts(write(run, replace(ASK, preferences=())))) == 2
    for change in ({"weights": True}, {"on_piece": print}):
        with pytest.raises(UserError, match=r"--weights show a control model at work, and .* there is none"):
            write(run, replace(ONE, **change))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preferences": ("prase",)}, "--preference=prase: there is no side 'prase'; did you mean 'praise'"),
        ({"preferences": ("praise=x",)}, "'x' is no weight"),
        ({"stages": ("rl",)}, "--stage is for runs of method=dprlhf"),
        ({"dials": ("praise:short",)}, "--dial=praise:short: must be A:B:t"),
        ({"dials": ("praise:short:2",)}, "--dial=praise:short:2: .* give a place from 0 to 1"),
        ({"dials": ("praise:all:0.5",)}, "--dial=praise:all:0.5: both ends must state something"),
        ({"temperature": -1.0}, "--temperature=-1: must be 0"),
        ({"max_new_tokens": 0}, "--max-new-tokens=0: must be 1 or more"),
        ({"max_new_tokens": 100}, "--max-new-tokens=100: .* the model reads 64"),
        ({"on_piece": print}, "--stream shows one text while it is written, and 4 are asked for"),
    ],
)
def test_a_mistake_is_named_in_one_line(merged: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        write(merged, replace(ASK, **change))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{"weights": True}, {"on_piece": print}])
def test_other_methods_have_no_experts_to_show(base: Path, change: dict[str, object]) -> None:
    with pytest.raises(UserError, match="--stream and --weights are for merged experts, and this is a run of 'dprlhf"):
        write(given_reward_run(base), replace(ASK, preferences=(), **change))  # type: ignore[arg-type]


def test_the_page_shows_every_text(merged: Path) -> None:
    content = weights_page(write(merged, ASK))
    assert all(label in content for label in BOTH)
    assert "4 texts, 6 experts" in content


def test_the_command_shows_writes_and_colours_them(
    merged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--prompt", "the film was", "--preference", BOTH[0], "--preference", BOTH[1], "--score"]
    assert main(["predict", str(merged), *asked, "--out", "texts.json", "--weights", "who.html"]) == 0
    shown = capsys.readouterr().out
    rows = json.loads((tmp_path / "texts.json").read_text())
    assert [row["preference"] for row in rows] == list(BOTH)
    assert all(name in shown for name in (*BOTH, "(reward 0.", "(weights: ornate 0."))
    assert (tmp_path / "who.html").read_text().startswith("<!DOCTYPE html>")


def test_the_command_streams_one_text(merged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (text,) = texts(write(merged, ONE))
    assert main(["predict", str(merged), "--prompt", "I liked", "--preference", "praise, short", "--stream"]) == 0
    first, *others = capsys.readouterr().out.splitlines()
    assert (first, others) == (text.text, text.details)
    assert main(["predict", str(merged), "--prompt", "a", "--prompt", "b", "--stream"]) == 2
    assert "and 2 are asked for" in capsys.readouterr().err
