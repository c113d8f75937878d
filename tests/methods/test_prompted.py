"""A model that is told the preference in words: what it sees, what it learns from, and that it can learn it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedalign.contribution import DELTA, State
from fedalign.errors import UserError
from fedalign.methods.base import Phase
from fedalign.methods.prompted import Prompted, PromptedPhase, PromptedTraining, PromptedTrainingPhase
from fedalign.methods.rollouts import uniform
from fedalign.methods.told_prompts import Teller
from fedalign.metrics.record import decode
from fedalign.models.text import TextCodec
from fedalign.rng import Streams
from tests.language_models import LENGTH, WORDS, random_model

from .stages import privacy
from .stated import (
    LENGTHS,
    PROMPTS,
    SIDES,
    client,
    demonstrations,
    dimensions,
    local,
    method,
    rounds,
    setting,
    wishes,
)

# The random models know few words, so that sides are words of theirs.
NAMED = {"tone": ("good", "bad"), "topic": ("plot", "it")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer parts words from what stands behind them."""
    found = random_model("gpt2", tmp_path_factory.mktemp("model"))
    content = json.loads((found / "tokenizer.json").read_text())
    (found / "tokenizer.json").write_text(json.dumps({**content, "pre_tokenizer": {"type": "Whitespace"}}))
    return found


def training(**changes: Any) -> PromptedTraining:
    steps = {key: changes.pop(key) for key in ("steps", "lr") if key in changes}
    return PromptedTraining(**{"rounds": 2, "batch": 3, "user_examples": 1, "local": local(**steps), **changes})


def phases(folder: Path, settings: Prompted, **changes: Any) -> list[Phase[Any]]:
    found = method(merging=settings, **changes).phases(setting(folder))
    return list(found[1:])


def trained_phases(folder: Path, **changes: Any) -> tuple[PromptedTrainingPhase, PromptedPhase]:
    first, second = phases(folder, Prompted(8, training(**changes)))
    assert isinstance(first, PromptedTrainingPhase) and isinstance(second, PromptedPhase)
    return first, second


def as_it_is(folder: Path, **changes: Any) -> PromptedPhase:
    (found,) = phases(folder, Prompted(8, None), **changes)
    assert isinstance(found, PromptedPhase)
    return found


def vectors(phase: PromptedPhase, *statements: str) -> Tensor:
    return torch.stack([phase.preferences.vector(each, "x") for each in statements])


def by_transformers(folder: Path, ids: list[int], draws: Tensor) -> list[int]:
    """Return the tokens that a model draws after ``ids``."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    new: list[int] = []
    for number in draws.tolist():
        with torch.no_grad():
            found = model(torch.tensor([ids + new])).logits[0, -1].double().softmax(0).cumsum(0)
        new.append(int(torch.searchsorted(found, torch.tensor(number * float(found[-1])), right=True)))
        if new[-1] == 0:
            break
    return new


def words(text: str) -> list[int]:
    return [WORDS.index(each) if each in WORDS else 1 for each in re.findall(r"\w+|[^\w\s]+", text)]


def test_the_statement_stands_before_the_prompt_and_a_long_prompt_loses_its_own_beginning(folder: Path) -> None:
    phase = as_it_is(folder)
    told = phase.teller.told(
        ["the film", "I liked the film and a plot", ""], vectors(phase, "moving, praise", "praise=0.5", "")
    )
    assert told == ["praise, moving. the film", "praise=0.5. film and a plot", ""]


def test_what_the_model_as_it_is_sees_is_the_told_prompt(folder: Path) -> None:
    named = {key: replace(each, sides=NAMED[key]) for key, each in dimensions().items()}
    phase = as_it_is(folder, dimensions=named)
    state = phase.initial(Streams(3), {})
    draws = uniform(range(3), 5)
    statements = ("good, plot", "bad", "")
    found = phase.writer(state).write(PROMPTS[:3], vectors(phase, *statements), draws)
    for row, statement in enumerate(statements):
        opening = f"{statement}. " if statement else ""
        expected = by_transformers(folder, words(opening + PROMPTS[row]), draws[row])
        assert found.tokens.ids[row, 4:][found.tokens.response_mask[row, 4:].bool()].tolist() == expected
        # What is scored is the response to the prompt as it was.
        own = found.tokens.ids[row, :4][found.tokens.attention_mask[row, :4].bool()].tolist()
        assert own == words(PROMPTS[row])
    assert found.tokens.ids.shape == (3, 9)
    likeliest = phase.writer(state).write(PROMPTS[:3], vectors(phase, *statements), None)
    assert likeliest.texts == phase.writer(state).write(PROMPTS[:3], vectors(phase, *statements), None).texts


def test_one_round_of_one_client_is_plain_training_on_told_prompts(folder: Path) -> None:
    first, _ = trained_phases(folder, batch=4)
    start = first.initial(Streams(3), {})
    examples = (*demonstrations("praise", "still", count=3), *wishes("blame, moving", count=1))
    after = rounds(first, start, client(*examples))
    network = first.fresh(Streams(0))
    network.head.requires_grad_(False)
    network.load_adapter(start)
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.05)
    for _ in range(2):
        losses = []
        for example in examples:
            prompt = words(f"{example.group}. {' '.join(example.prompt.split()[-4:])}")
            response = [*words(example.response), 0][:5]
            found = network.policy.transformer.adapted(torch.tensor([prompt + response])).logits[0].log_softmax(1)
            each = [found[len(prompt) - 1 + place, token] for place, token in enumerate(response)]
            losses.append(-torch.stack(each).mean())
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    for name, tensor in network.adapter().items():
        assert torch.allclose(after[name], tensor, atol=1e-6)
    assert set(first.template(start).tensors) == {DELTA + name for name in start}


def test_texts_that_state_nothing_are_not_read(folder: Path) -> None:
    first, _ = trained_phases(folder)
    shard = client(*demonstrations("praise"), *wishes("all", ""))
    assert [example.group for example in first.own(shard)] == ["praise"] * 4
    with pytest.raises(UserError, match=r"client 'ann', preference=prase: there is no side 'prase'"):
        first.check(client(*wishes("prase")))


def test_what_was_trained_writes_and_learns_to_follow_words(folder: Path) -> None:
    named = {key: replace(each, sides=NAMED[key]) for key, each in dimensions().items()}
    settings = Prompted(8, training(batch=8, lr=0.5, steps=40))
    first, second = phases(folder, settings, dimensions=named)
    assert isinstance(first, PromptedTrainingPhase) and isinstance(second, PromptedPhase)
    side = {"praise": "good", "blame": "bad", "moving": "plot", "still": "it"}
    texts = tuple(replace(e, group=side[e.group]) for e in demonstrations("praise", "moving", count=8))
    shard = client(*texts, test=texts)
    start = first.initial(Streams(3), {})

    def nll(state: State) -> float:
        sums = decode(first.evaluate(state, shard, Streams(3)).scalars)
        assert {each.group for each in sums} == {"good", "plot"}
        return sum(each.total for each in sums) / sum(each.n for each in sums)

    after = rounds(first, start, shard)
    assert nll(after) < 0.7 * nll(start)
    state = second.initial(Streams(3), {first.name: after})
    found = second.writer(state).write(["the"] * 2, vectors(second, "good", "plot"), None)
    assert found.texts[0] != found.texts[1]
    fresh = second.initial(Streams(3), {})
    assert state.keys() == fresh.keys()
    pretrained = as_it_is(folder, dimensions=named)
    draws = uniform(range(2), 5)
    wanted = vectors(second, "good, plot", "bad")
    plain = pretrained.writer(pretrained.initial(Streams(3), {})).write(PROMPTS[:2], wanted, draws)
    assert second.writer(fresh).write(PROMPTS[:2], wanted, draws).texts == plain.texts
    assert second.writer(state).write(PROMPTS[:2], wanted, draws).texts != plain.texts


def test_it_is_scored_as_what_merges_experts_is(folder: Path, tmp_path: Path) -> None:
    phase = as_it_is(folder)
    state = phase.initial(Streams(3), {})
    shard = client(rl=wishes("praise, moving"), test=wishes("praise, moving", "blame, still"))
    names = {each.name for each in decode(phase.evaluate(state, shard, Streams(3)).scalars)}
    assert {"unseen/reward", "unseen/win_rate", "unseen/base_nll"} <= names
    first, second = trained_phases(folder)
    first.export(first.initial(Streams(3), {}), tmp_path)
    assert (tmp_path / "prompted" / "adapter_model.safetensors").is_file()
    assert (phase.rounds, first.rounds, second.rounds) == (0, 2, 0)
    assert (first.stage, second.stage) == ("sft", "rl")


@pytest.mark.parametrize("change", [{"batch": 1}, {"steps": 3}, {"lr": 0.1}], ids=str)
def test_an_option_changes_what_is_learnt(folder: Path, change: dict[str, Any]) -> None:
    shard = client(*demonstrations(*SIDES))
    found = []
    for settings in ({}, change):
        first, _ = trained_phases(folder, **settings)
        found.append(rounds(first, first.initial(Streams(3), {}), shard))
    assert any(not torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


def test_a_statement_that_has_no_room_is_refused(folder: Path) -> None:
    codec = TextCodec(str(folder), "model")
    preferences = as_it_is(folder).preferences
    with pytest.raises(UserError, match=r"method\.merging\.statement=1: a statement has 4 tokens; set 4, or more"):
        Teller(preferences, codec, LENGTHS, 1)
    assert Teller(preferences, codec, LENGTHS, 4).widened.prompt == 8
    for settings in (Prompted(60, None), Prompted(60, training())):
        with pytest.raises(UserError, match=rf"statement=60: with method\.lengths that is 69 .* reads {LENGTH}"):
            phases(folder, settings)


def test_a_statement_beyond_its_room_loses_its_beginning(folder: Path) -> None:
    texts: list[Sequence[str]] = []
    for statement in (4, 8):
        (phase,) = phases(folder, Prompted(statement, None))
        assert isinstance(phase, PromptedPhase)
        long = vectors(phase, "praise=0.25, blame=0.25, moving=0.25, still=0.25")
        found = phase.writer(phase.initial(Streams(3), {})).write(["the film was a"], long, uniform([1], 5))
        texts.append(found.texts)
    assert texts[0] != texts[1]


def test_noise_on_the_client_protects_users_with_some_examples_each(folder: Path) -> None:
    shard = client(*demonstrations(*SIDES, count=8), *demonstrations("blame", count=8, user="bob"))
    noisy = replace(setting(folder), local_privacy=privacy("user"), private=True)
    found = []
    for count in (1, 3):
        first = method(merging=Prompted(8, training(user_examples=count))).phases(noisy)[1]
        assert isinstance(first, PromptedTrainingPhase)
        assert first.local_units == {"example", "user"}
        found.append(rounds(first, first.initial(Streams(3), {}), shard))
    assert any(not torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())
