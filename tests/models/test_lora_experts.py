"""Stacked adapters against peft's own: the same numbers from one pass, whoever is asked of what."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedalign.contribution import State
from fedalign.errors import UserError
from fedalign.models.experts import Pairs, TopTokens
from fedalign.models.lora import LoraTransformer
from fedalign.models.lora_experts import LoraExperts, merged_adapter
from tests.language_models import LENGTH, WORDS, policy, random_model, shake

IDS = torch.tensor([[2, 3, 4, 5, 9], [6, 7, 8, 9, 3], [12, 4, 4, 17, 6]])
MASK = torch.ones_like(IDS)
EVERYONE = Pairs.of(torch.ones(3, 3, dtype=torch.bool))
SOME = Pairs.of(torch.tensor([[True, False, True], [False, True, False], [True, True, False]]))
SIZES: list[dict[str, Any]] = [{"rank": 4, "alpha": 8.0}, {"rank": 1, "alpha": 5.0}, {"rank": 6, "alpha": 3.0}]
MATRICES: dict[str, list[tuple[str, ...]]] = {
    "gpt2": [("c_attn",), ("c_attn", "c_fc"), ("c_proj",)],
    "qwen2": [("q_proj", "v_proj"), ("q_proj", "down_proj"), ("k_proj",)],
}


@pytest.fixture(scope="module", params=["gpt2", "qwen2"])
def kind(request: pytest.FixtureRequest) -> str:
    """Matrices are stored transposed in one, and as they are in the other."""
    return str(request.param)


@pytest.fixture(scope="module")
def folder(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(kind, tmp_path_factory.mktemp(kind))


@pytest.fixture(scope="module")
def own(kind: str, folder: Path) -> list[LoraTransformer]:
    """Three adapters of different ranks, scales and matrices, each in a network of its own."""
    made = []
    for number, (size, matrices) in enumerate(zip(SIZES, MATRICES[kind], strict=True)):
        network = policy(folder, 0, seed=number, target_modules=matrices, **size).transformer
        shake(network, 0.2, seed=number)
        made.append(network.eval())
    return made


@pytest.fixture(scope="module")
def experts(folder: Path, own: list[LoraTransformer]) -> LoraExperts:
    return loaded(folder, own)


def scales(count: int = 3) -> list[float]:
    return [size["alpha"] / size["rank"] for size in SIZES[:count]]


def loaded(folder: Path, networks: Sequence[LoraTransformer]) -> LoraExperts:
    found = LoraExperts(folder, ["plain", "terse", "kind"], "float32", "cpu")
    found.load([network.adapter() for network in networks], scales())
    return found


def peft(network: LoraTransformer, ids: Tensor, mask: Tensor) -> Tensor:
    """The oracle: the adapter as peft applies it."""
    with torch.no_grad():
        found: Tensor = network(mask, input_ids=ids).logits.log_softmax(2)
    return found


def plain(folder: Path) -> Tensor:
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        raw: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
        found: Tensor = raw(input_ids=IDS, attention_mask=MASK).logits.log_softmax(2)
    return found


def expected(own: Sequence[LoraTransformer], pairs: Pairs, ids: Tensor = IDS, mask: Tensor = MASK) -> Tensor:
    each = [peft(network, ids, mask) for network in own]
    return torch.stack([each[e][t] for t, e in zip(pairs.text.tolist(), pairs.expert.tolist(), strict=True)])


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("pairs", [EVERYONE, SOME])
def test_each_row_is_its_experts_own_adapter(experts: LoraExperts, own: list[LoraTransformer], pairs: Pairs) -> None:
    found, cache = experts.advance(pairs, IDS, MASK, None, keep_cache=False)
    assert cache is None
    assert found.dtype == torch.float32
    assert not found.requires_grad
    close(found, expected(own, pairs))
    last, _ = experts.advance(pairs, IDS, MASK, None, last_only=True)
    close(last, found[:, -1:])


def test_experts_differ(own: list[LoraTransformer], folder: Path) -> None:
    each = [peft(network, IDS, MASK) for network in own] + [plain(folder)]
    for number, first in enumerate(each):
        assert all((first - second).abs().max() > 0.05 for second in each[:number])


def test_pairs_are_sorted_by_text_then_expert() -> None:
    assert SOME.text.tolist() == [0, 0, 1, 2, 2]
    assert SOME.expert.tolist() == [0, 2, 1, 0, 1]


def test_pairs_may_come_in_any_order(experts: LoraExperts, own: list[LoraTransformer]) -> None:
    order = torch.tensor([3, 0, 4, 2, 1])
    mixed = Pairs(SOME.text[order], SOME.expert[order])
    close(experts.advance(mixed, IDS, MASK, None)[0], expected(own, mixed))


def test_padding_on_the_left_moves_nothing(experts: LoraExperts, own: list[LoraTransformer]) -> None:
    pad = torch.full((3, 2), 1)
    found, _ = experts.advance(SOME, torch.cat([pad, IDS], 1), torch.cat([0 * pad, MASK], 1), None)
    close(found[:, 2:], expected(own, SOME))


@pytest.mark.parametrize("steps", [(5,), (3, 1, 1), (1, 1, 1, 1, 1)])
def test_a_cache_changes_nothing(experts: LoraExperts, own: list[LoraTransformer], steps: tuple[int, ...]) -> None:
    mask = MASK.clone()
    mask[1, :2] = 0
    cache, start, parts = None, 0, []
    for new in steps:
        end = start + new
        found, cache = experts.advance(SOME, IDS[:, start:end], mask[:, :end], cache)
        parts.append(found)
        start = end
    seen = mask.bool()[SOME.text]
    close(torch.cat(parts, 1)[seen], expected(own, SOME, mask=mask)[seen])


def test_the_base_is_what_nobody_has_adapted(experts: LoraExperts, folder: Path, own: list[LoraTransformer]) -> None:
    for _ in range(2):
        close(experts.base(IDS, MASK), plain(folder))
        close(experts.advance(EVERYONE, IDS, MASK, None)[0], expected(own, EVERYONE))


def test_hooks_do_not_reach_other_networks_on_the_base(folder: Path, own: list[LoraTransformer]) -> None:
    before = [peft(network, IDS, MASK) for network in own]
    first = loaded(folder, own)
    second = loaded(folder, [own[1]] * 3)
    assert all(torch.equal(peft(n, IDS, MASK), b) for n, b in zip(own, before, strict=True))
    assert not torch.allclose(first.advance(SOME, IDS, MASK, None)[0], second.advance(SOME, IDS, MASK, None)[0])
    close(first.advance(SOME, IDS, MASK, None)[0], expected(own, SOME))


def test_loading_again_replaces(folder: Path, own: list[LoraTransformer]) -> None:
    found = loaded(folder, own)
    found.advance(EVERYONE, IDS, MASK, None)
    found.load([network.adapter() for network in reversed(own)], scales()[::-1])
    close(found.advance(EVERYONE, IDS, MASK, None)[0], expected(own[::-1], EVERYONE))
    found.load([{}, {}, {}], [1.0, 1.0, 1.0])
    close(found.advance(EVERYONE, IDS, MASK, None)[0], plain(folder)[EVERYONE.text])


def test_an_expert_without_an_adapter_is_the_base(folder: Path, own: list[LoraTransformer]) -> None:
    found = LoraExperts(folder, ["plain", "terse", "kind"], "float32", "cpu")
    found.load([own[0].adapter(), {}, own[2].adapter()], scales())
    of_second = EVERYONE.expert == 1
    log_probs, _ = found.advance(EVERYONE, IDS, MASK, None)
    close(log_probs[of_second], plain(folder))
    close(log_probs[~of_second], expected(own, EVERYONE)[~of_second])


def test_names_may_have_anything_before_pefts_own(folder: Path, own: list[LoraTransformer]) -> None:
    found = LoraExperts(folder, ["plain", "terse", "kind"], "float32", "cpu")
    renamed = [
        {"policy.0." + name.partition("adapted.")[2]: tensor for name, tensor in network.adapter().items()}
        for network in own
    ]
    found.load(renamed, scales())
    close(found.advance(SOME, IDS, MASK, None)[0], expected(own, SOME))


def test_a_matrix_that_the_base_lacks_is_refused(folder: Path, own: list[LoraTransformer]) -> None:
    found = LoraExperts(folder, ["plain"], "float32", "cpu")
    state: State = dict(own[0].adapter())
    state["base_model.model.absent.lora_A.default.weight"] = torch.zeros(2, 32)
    state["base_model.model.absent.lora_B.default.weight"] = torch.zeros(32, 2)
    with pytest.raises(ValueError, match="adapts absent, which the base model does not have"):
        found.load([state], scales(1))


@pytest.mark.parametrize(
    "name",
    ["absent.lora_A.weight", "base_model.model.wte.lora_embedding_A", "base_model.model.x.lora_magnitude_vector"],
)
def test_what_is_not_understood_is_not_left_out(folder: Path, own: list[LoraTransformer], name: str) -> None:
    found = LoraExperts(folder, ["plain"], "float32", "cpu")
    state: State = dict(own[0].adapter())
    state[name], state[name.replace("lora_A", "lora_B")] = torch.zeros(2, 32), torch.zeros(32, 2)
    with pytest.raises(ValueError, match=rf"^{name} is no low-rank factor"):
        found.load([state], scales(1))


def test_what_the_base_says_of_itself(experts: LoraExperts) -> None:
    assert experts.names == ("plain", "terse", "kind")
    assert experts.vocabulary == len(WORDS)
    assert experts.end_tokens == (0,)
    assert experts.pad_token == 0
    assert experts.max_tokens == LENGTH
    assert experts.device == torch.device("cpu")
    top = TopTokens(experts, 2, 0.1)
    about = "names", "vocabulary", "end_tokens", "pad_token", "max_tokens", "device"
    assert all(getattr(top, name) == getattr(experts, name) for name in about)


def test_top_tokens_are_all_that_is_left(experts: LoraExperts) -> None:
    whole, _ = experts.advance(SOME, IDS, MASK, None)
    found, cache = TopTokens(experts, 3, 0.02).advance(SOME, IDS[:, :4], MASK[:, :4], None)
    last, _ = TopTokens(experts, 3, 0.02).advance(SOME, IDS[:, 4:], MASK, cache, last_only=True)
    found = torch.cat([found, last], 1)
    assert torch.equal(found.argmax(2), whole.argmax(2))
    assert ((found > float(found.min()) + 1e-4).sum(2) == 3).all()
    torch.testing.assert_close(found.exp().sum(2), torch.ones(5, 5))


def test_half_precision_keeps_the_adapters_in_single(folder: Path, own: list[LoraTransformer]) -> None:
    found = LoraExperts(folder, ["plain", "terse", "kind"], "bfloat16", "cpu")
    found.load([network.adapter() for network in own], scales())
    log_probs, _ = found.advance(EVERYONE, IDS, MASK, None)
    assert log_probs.dtype == torch.float32
    assert 1e-4 < (log_probs - expected(own, EVERYONE)).abs().max() < 1.0


def test_merged_adapters_are_the_mean_of_factors() -> None:
    first = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[0.0]])}
    second = {"a": torch.tensor([3.0, -2.0]), "b": torch.tensor([[5.0]], dtype=torch.bfloat16)}
    found = merged_adapter([first, second])
    assert {name: tensor.tolist() for name, tensor in found.items()} == {"a": [2.0, 0.0], "b": [[2.5]]}
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert torch.equal(merged_adapter([first])["a"], first["a"])


def test_a_missing_base_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^model="):
        LoraExperts(tmp_path / "absent", ["plain"], "float32", "cpu")
