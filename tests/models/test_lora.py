"""LoRA on a shared frozen base: what is trained, what travels, and networks that do not disturb each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fedalign.errors import UserError
from fedalign.models.lora import LoraTransformer, load_trainable, trainable_state
from tests.language_models import policy, shake

IDS = torch.tensor([[2, 3, 4, 5], [6, 7, 8, 9]])
MASK = torch.ones_like(IDS)


def network(folder: Path, seed: int = 0, **changes: Any) -> LoraTransformer:
    values: dict[str, Any] = {
        "kind": "causal",
        "rank": 4,
        "alpha": 8.0,
        "dropout": 0.0,
        "target_modules": None,
        "dtype": "float32",
        "device": "cpu",
        "key": "method.policy",
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LoraTransformer(str(folder), **{**values, **changes})


def logits(lora: LoraTransformer) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = lora(MASK, input_ids=IDS).logits
    return found


def plain(folder: Path) -> torch.Tensor:
    """The oracle: the model as transformers loads it."""
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        raw: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
        found: torch.Tensor = raw(input_ids=IDS, attention_mask=MASK).logits
    return found


def test_a_fresh_adapter_changes_no_bit(model: Path) -> None:
    assert torch.equal(logits(network(model)), plain(model))


def test_only_the_adapter_is_trained_and_is_small(model: Path) -> None:
    lora = network(model)
    state = trainable_state(lora)
    assert state
    assert all("lora_" in name for name in state)
    frozen = [p for p in lora.parameters() if not p.requires_grad]
    assert len(frozen) + len(state) == len(list(lora.parameters()))
    lora(MASK, input_ids=IDS).logits.sum().backward()
    assert all(p.grad is None for p in frozen)
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in lora.parameters())


def test_a_state_makes_the_round_trip(model: Path) -> None:
    first, second = network(model, seed=1), network(model, seed=2)
    shake(first)
    assert not torch.equal(logits(first), logits(second))
    state = {name: tensor.clone() for name, tensor in trainable_state(first).items()}
    load_trainable(second, state)
    assert torch.equal(logits(first), logits(second))
    assert all(torch.equal(tensor, state[name]) for name, tensor in trainable_state(second).items())
    del state[next(iter(state))]
    with pytest.raises(KeyError):
        load_trainable(second, state)


def test_two_networks_share_the_base_and_nothing_else(model: Path) -> None:
    first, second = network(model, seed=1), network(model, seed=1, rank=2)
    before = logits(second)
    shake(first)
    with first.without_adapter():
        assert torch.equal(logits(second), before)
    first.train(False)
    assert second.training
    assert torch.equal(logits(second), before)
    assert not torch.equal(logits(first), before)
    frozen = {p.data_ptr() for p in first.parameters() if not p.requires_grad}
    assert frozen == {p.data_ptr() for p in second.parameters() if not p.requires_grad}
    own = {tensor.data_ptr() for tensor in trainable_state(first).values()}
    assert not own & {tensor.data_ptr() for tensor in trainable_state(second).values()}


def test_without_adapter_is_the_pretrained_model_and_ends(model: Path) -> None:
    lora = network(model)
    shake(lora)
    moved = logits(lora)
    with lora.without_adapter():
        assert torch.equal(logits(lora), plain(model))
    assert torch.equal(logits(lora), moved)


def test_a_look_at_the_reference_does_not_cost_the_gradient(model: Path) -> None:
    def gradient(look: bool) -> list[torch.Tensor]:
        lora = network(model)
        shake(lora)
        value = lora(MASK, input_ids=IDS).logits.square().mean()
        if look:
            with lora.without_adapter():
                logits(lora)
        value.backward()
        assert all(p.grad is not None for p in lora.parameters() if p.requires_grad)
        return [p.grad for p in lora.parameters() if p.grad is not None]

    for with_look, without in zip(gradient(True), gradient(False), strict=True):
        assert torch.equal(with_look, without)


def test_only_the_adapter_drops(model: Path) -> None:
    lora = network(model, dropout=0.5)
    assert torch.equal(logits(lora.train()), plain(model))  # the fresh adapter gives 0, dropped or not
    shake(lora)
    first, second = logits(lora), logits(lora)
    assert not torch.equal(first, second)
    assert torch.equal(logits(lora.eval()), logits(lora))
    assert lora.training is False


def test_padding_on_the_left_moves_nothing(model: Path) -> None:
    lora = network(model)
    shake(lora)
    ids = torch.cat([torch.zeros(2, 3, dtype=torch.int64), IDS], 1)
    mask = torch.cat([torch.zeros(2, 3, dtype=torch.int64), MASK], 1)
    with torch.no_grad():
        padded = lora(mask, input_ids=ids).logits[:, 3:]
    torch.testing.assert_close(padded, logits(lora), atol=1e-4, rtol=1e-4)


def test_settings_of_the_adapter_act(gpt2: Path) -> None:
    def sizes(**changes: Any) -> dict[str, torch.Size]:
        return {name: tensor.shape for name, tensor in trainable_state(network(gpt2, **changes)).items()}

    assert {shape[0] for name, shape in sizes(rank=3).items() if "lora_A" in name} == {3}
    assert len(sizes(target_modules=("c_attn", "c_fc"))) == 2 * len(sizes())
    low, high = network(gpt2, alpha=1.0), network(gpt2, alpha=50.0)
    shake(low)
    load_trainable(high, trainable_state(low))
    assert not torch.allclose(logits(low), logits(high))


def test_half_precision_keeps_the_adapter_in_single(gpt2: Path) -> None:
    lora = network(gpt2, dtype="bfloat16")
    assert {tensor.dtype for tensor in trainable_state(lora).values()} == {torch.float32}
    assert {p.dtype for p in lora.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert 1e-4 < (logits(lora).float() - plain(gpt2)).abs().max() < 0.5


def test_a_saved_adapter_opens_in_peft(model: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    lora = network(model)
    shake(lora)
    lora.save_adapter(tmp_path / "adapter")
    raw: Any = AutoModelForCausalLM.from_pretrained(model)
    opened = PeftModel.from_pretrained(raw, str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        torch.testing.assert_close(opened(input_ids=IDS, attention_mask=MASK).logits, logits(lora))


def test_a_shared_base_is_not_moved(gpt2: Path) -> None:
    network_of_one = policy(gpt2)
    with pytest.raises(TypeError, match="shared with other networks"):
        network_of_one.to(torch.float64)
    assert {p.dtype for p in network_of_one.transformer.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_modules": ("absent",)}, r"^method\.policy\.target_modules=\('absent',\): .*absent"),
        ({"device": "abacus"}, r"^method\.policy\.model=.*cannot be loaded on abacus"),
    ],
)
def test_mistakes_end_in_one_line(gpt2: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        network(gpt2, **changes)
    assert "\n" not in str(error.value)


def test_a_missing_model_is_refused() -> None:
    with pytest.raises(UserError, match=r"^method\.policy\.model=\./absent: no such folder"):
        LoraTransformer("./absent", "causal", 4, 8.0, 0.0, None, "float32", "cpu", "method.policy")
