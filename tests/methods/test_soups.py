"""Personalized Soups: one adapter a preference is the mean that peft makes, and of one expert it is that expert."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedalign.contribution import State
from fedalign.errors import UserError
from fedalign.methods.expert_adapters import Adapters, adapter_of
from fedalign.methods.loaded_experts import AdapterExperts, ModelExperts
from fedalign.methods.rollouts import uniform
from fedalign.methods.soups import Soups, SoupsPhase
from fedalign.methods.stated_writer import StatedText
from fedalign.metrics.record import decode
from fedalign.models.experts import Pairs
from fedalign.models.language_model import ValuedPolicy
from fedalign.rng import Streams
from tests.language_models import random_model

from .stated import PROMPTS, SIDES, client, method, setting, wishes

STATEMENTS = ("praise", "praise, moving", "blame, still", "moving", "praise=0.5, still=1.5", "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model("gpt2", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def phase(folder: Path) -> SoupsPhase:
    *_, found = method(merging=Soups()).phases(setting(folder))
    assert isinstance(found, SoupsPhase)
    return found


def state_of(phase: SoupsPhase, scale: float = 0.5) -> State:
    """Return experts that differ."""
    generator = torch.Generator().manual_seed(1)
    fresh = phase.initial(Streams(3), {})
    return {name: tensor + scale * torch.randn(tensor.shape, generator=generator) for name, tensor in fresh.items()}


def written(phase: SoupsPhase, state: State, statements: tuple[str, ...] = STATEMENTS) -> StatedText:
    vectors = torch.stack([phase.preferences.vector(each, "x") for each in statements])
    return phase.writer(state).write(PROMPTS[: len(statements)], vectors, uniform(range(len(statements)), 5))


def log_probs(network: ValuedPolicy, adapter: State, text: StatedText, row: int) -> Tensor:
    network.load_adapter(adapter)
    network.eval()
    with torch.no_grad():
        own = text.tokens.ids[row : row + 1], text.tokens.attention_mask[row : row + 1]
        return network.policy(*own, None).log_softmax(2)[0]  # type: ignore[no-any-return]


def test_each_text_is_written_by_the_mean_of_the_wanted_experts(folder: Path, phase: SoupsPhase) -> None:
    state = state_of(phase)
    text = written(phase, state)
    rows = [[1.0, 0, 0, 0], [0.5, 0, 0.5, 0], [0, 0.5, 0, 0.5], [0, 0, 1.0, 0], [0.25, 0, 0, 0.75], [0.25] * 4]
    network = setting(folder).model.build()  # type: ignore[attr-defined]
    draws = uniform(range(len(STATEMENTS)), 5)
    each = [adapter_of(state, side) for side in SIDES]
    for row, shares in enumerate(rows):
        mean = {
            name: torch.stack([share * own[name] for share, own in zip(shares, each, strict=True)]).sum(0)
            for name in each[0]
        }
        found = log_probs(network, mean, text, row)
        for place in range(4, 9):
            if text.tokens.response_mask[row, place]:
                cumulative = found[place - 1].double().exp().cumsum(0)
                drawn = int(torch.searchsorted(cumulative, draws[row, place - 4] * cumulative[-1], right=True))
                assert drawn == int(text.tokens.ids[row, place])
    assert text.log_weights is None


def test_what_is_merged_is_what_peft_merges(folder: Path, phase: SoupsPhase, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    state = state_of(phase)
    network = setting(folder).model.build()  # type: ignore[attr-defined]
    for side in ("praise", "moving"):
        network.load_adapter(adapter_of(state, side))
        network.policy.transformer.save_adapter(tmp_path / side)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), str(tmp_path / "praise"), "praise")
    model.load_adapter(str(tmp_path / "moving"), "moving")
    # peft's "linear" merge takes the factors times the square root of a weight.
    model.add_weighted_adapter(["praise", "moving"], [0.25, 0.25], "soup", combination_type="linear")
    model.set_adapter("soup")
    text = written(phase, state, ("praise, moving",) * 3)
    phase._soup.names = ("praise, moving",)
    ids, mask = text.tokens.ids, text.tokens.attention_mask
    pairs = Pairs.of(torch.ones(3, 1, dtype=torch.bool))
    found, _ = phase._soup.advance(pairs, ids, mask, None)
    with torch.no_grad():
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        expected = model(ids, attention_mask=mask, position_ids=positions).logits.log_softmax(2)
    assert torch.allclose(found[mask.bool()], expected[mask.bool()], atol=1e-4)


def test_a_soup_of_one_expert_is_that_expert(phase: SoupsPhase) -> None:
    state = state_of(phase)
    alone = written(phase, state, ("praise", "still"))
    vectors = torch.stack([phase.preferences.vector(each, "x") for each in ("praise", "still")])
    draws = uniform(range(2), 5)
    assert phase.references.even(PROMPTS[:2], vectors, draws, 1.0) == alone.texts
    assert len(set(alone.texts)) == 2


def test_equal_experts_make_every_soup_the_same(phase: SoupsPhase) -> None:
    fresh = phase.initial(Streams(3), {})
    texts = phase.writer(fresh).write(
        [PROMPTS[0]] * 2,
        torch.stack([phase.preferences.vector(each, "x") for each in ("praise, moving", "blame")]),
        uniform([7, 7], 5),
    )
    assert texts.texts[0] == texts.texts[1]


def test_it_is_scored_and_learns_nothing(phase: SoupsPhase) -> None:
    state = state_of(phase)
    shard = client(rl=wishes("praise, moving"), test=wishes("praise, moving", "blame, still"))
    names = {each.name for each in decode(phase.evaluate(state, shard, Streams(3)).scalars)}
    assert {"unseen/reward", "unseen/win_rate", "unseen/base_nll"} <= names
    assert not any("weight" in name for name in names)
    assert phase.rounds == 0 and not phase.template(state).tensors
    with pytest.raises(TypeError, match="no rounds"):
        phase.local(state, shard, Streams(3), {})


def test_what_has_no_mean_is_refused(folder: Path, phase: SoupsPhase) -> None:
    with pytest.raises(UserError, match=r"method/merging=soups takes the mean of adapters.*ModelExperts"):
        method(ModelExperts({}), Soups())
    method(AdapterExperts({}), Soups())
    state = state_of(phase)
    each = [adapter_of(state, side) for side in SIDES]
    thin = {name: tensor[:1] if ".lora_A." in name else tensor[:, :1] for name, tensor in each[2].items()}
    for experts in (Adapters([*each[:2], thin, each[3]], [2.0] * 4), Adapters(each, [2.0, 2.0, 1.0, 2.0])):
        with pytest.raises(UserError, match=r"the adapters of praise and moving differ"):
            type(phase.writer(state))(
                phase._soup, experts, phase.preferences, phase.fallback, phase.codec, phase.method.lengths
            )


def test_soups_of_saved_experts_are_those_of_the_run_that_saved_them(
    folder: Path, phase: SoupsPhase, tmp_path: Path
) -> None:
    state = state_of(phase)
    network = setting(folder).model.build()  # type: ignore[attr-defined]
    for side in SIDES:
        network.load_adapter(adapter_of(state, side))
        network.policy.transformer.save_adapter(tmp_path / side)
    saved = AdapterExperts({side: str(tmp_path / side) for side in SIDES})
    (loaded,) = method(saved, Soups()).phases(setting(folder))
    assert isinstance(loaded, SoupsPhase)
    assert loaded.initial(Streams(3), {}) == {}
    one, other = written(phase, state), written(loaded, {})
    assert one.texts == other.texts and len(set(one.texts)) > 3
