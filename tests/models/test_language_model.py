"""The aligned language model: one pass for logits and values, an adapter that travels, gradients of single texts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from fedalign.build import build
from fedalign.errors import UserError
from fedalign.models.base import ModelSpec
from fedalign.models.generation import generate
from fedalign.models.language_model import LanguageModelSpec, ValuedPolicy
from fedalign.models.lora import trainable_state
from fedalign.objectives.ppo import clipped_policy_loss, token_log_probabilities, value_loss
from fedalign.objectives.preference import preference_nll
from fedalign.privacy import unit_gradients as unit_gradients_module
from fedalign.privacy.local import DPSGD, GradSample
from fedalign.privacy.unit_gradients import unit_gradients
from tests.cases import mostly_slow
from tests.language_models import random_model, shake

TEXTS = [[2, 3, 4, 5, 9, 7], [6, 7, 8], [12, 4, 4, 13, 2], [9, 10], [3, 14, 15, 16, 17, 18]]
"""Each begins with a prompt of one token."""
REJECTED = [[2, 9], [6, 8, 7, 5], [12, 5, 4], [9, 3, 4, 5, 6], [3, 2, 2]]
WIDE = 1e6
"""A bound that clips nothing."""

sides = pytest.mark.parametrize("side", ["left", "right"])


@pytest.fixture(scope="module", params=["gpt2", "qwen2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give random models of two architectures."""
    return random_model(request.param, tmp_path_factory.mktemp(request.param))


def spec(folder: Path, **changes: Any) -> LanguageModelSpec:
    values: dict[str, Any] = {
        "rank": 4,
        "alpha": 8.0,
        "dropout": 0.0,
        "target_modules": None,
        "freeze_a": False,
        "dtype": "float32",
        "device": "cpu",
    }
    return LanguageModelSpec(model=str(folder), **{**values, **changes})


def valued(folder: Path, seed: int = 0, move: float = 0.0, **changes: Any) -> ValuedPolicy:
    """Return a network; where ``move`` is positive, adapter and head act."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        found = spec(folder, **changes).build()
    if move:
        shake(found, move)
    return found


def padded(texts: Sequence[list[int]], side: str) -> tuple[Tensor, Tensor]:
    """Return token ids and mask; padding holds a token that also means something."""
    width = max(map(len, texts))

    def row(real: list[int], filler: int) -> list[int]:
        rest = [filler] * (width - len(real))
        return rest + real if side == "left" else real + rest

    return torch.tensor([row(t, 1) for t in texts]), torch.tensor([row([1] * len(t), 0) for t in texts])


# ------------------------------------------------------------------------------------------------ logits and values


@sides
def test_logits_are_the_policy_s_and_values_read_the_last_hidden_state(folder: Path, side: str) -> None:
    from transformers import AutoModel

    ids, mask = padded(TEXTS, side)
    found, body = valued(folder), AutoModel.from_pretrained(folder).eval()
    nn.init.normal_(found.head.weight)
    with torch.no_grad():
        logits, values = found(ids, mask)
        scores = found.scores(ids, mask)
        assert torch.equal(logits, found.policy(ids, mask, None))
        for row, text in enumerate(TEXTS):
            hidden = body(input_ids=torch.tensor([text])).last_hidden_state[0]
            expected = (hidden @ found.head.weight.T + found.head.bias)[:, 0]
            torch.testing.assert_close(values[row][mask[row].bool()], expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(scores[row], expected[-1], rtol=1e-4, atol=1e-5)


@sides
def test_the_adapter_reaches_logits_values_and_scores(folder: Path, side: str) -> None:
    ids, mask = padded(TEXTS, side)
    last = mask.cumsum(1).argmax(1)
    with torch.no_grad():
        moved = valued(folder, move=0.3)
        (logits, values), scores = moved(ids, mask), moved.scores(ids, mask)
        torch.testing.assert_close(scores, values[torch.arange(len(ids)), last])
        with moved.policy.transformer.without_adapter():
            other_logits, other_values = moved(ids, mask)
            other_scores = moved.scores(ids, mask)
    real = mask.bool()
    for acted, plain in (
        (logits[real], other_logits[real]),
        (values[real], other_values[real]),
        (scores, other_scores),
    ):
        assert (acted - plain).abs().max() > 1e-3


def test_a_fresh_head_says_nothing(folder: Path) -> None:
    ids, mask = padded(TEXTS, "left")
    fresh = valued(folder)
    assert not fresh(ids, mask)[1].any()
    assert not fresh.scores(ids, mask).any()


def test_the_body_is_passed_once_and_scores_need_no_logits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = valued(folder)
    base: Any = found.policy.transformer.adapted.get_base_model()
    counts = {"embedding": 0, "logits": 0}

    def counting(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            counts[name] += 1

        return hook

    base.get_input_embeddings().register_forward_hook(counting("embedding"))
    base.get_output_embeddings().register_forward_hook(counting("logits"))
    found(*padded(TEXTS, "left"))
    assert counts == {"embedding": 1, "logits": 1}
    found.scores(*padded(TEXTS, "left"))
    assert counts == {"embedding": 2, "logits": 1}


def test_a_half_precision_base_has_values_in_float32(folder: Path) -> None:
    found = valued(folder, move=0.1, dtype="bfloat16")
    ids, mask = padded(TEXTS, "left")
    logits, values = found(ids, mask)
    assert logits.dtype == torch.bfloat16
    assert values.dtype == found.scores(ids, mask).dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in found.parameters() if p.requires_grad)


def test_its_policy_writes(folder: Path) -> None:
    found = valued(folder, move=0.1)
    ids, mask = padded([[2, 3, 4], [12, 7]], "left")
    rows = generate(found.policy, ids, mask, None, 5, 0.0, torch.Generator())
    again = generate(found.policy, ids, mask, None, 5, 0.0, torch.Generator(), use_cache=False)
    assert torch.equal(rows, again)
    assert rows.shape[0] == 2


# -------------------------------------------------------------------------------------------------- what is trained


def test_adapter_and_head_are_trained_and_a_frozen_a_is_not(folder: Path) -> None:
    free, frozen = (set(trainable_state(valued(folder, freeze_a=f))) for f in (False, True))
    head = {"head.weight", "head.bias"}
    assert free - head == set(valued(folder).adapter())
    assert frozen == head | {name for name in free if "lora_B" in name}
    assert any("lora_A" in name for name in free)


def test_query_and_value_are_adapted(tmp_path: Path) -> None:
    qwen2 = valued(random_model("qwen2", tmp_path), target_modules=("q_proj", "v_proj"))
    assert {name.split(".lora_")[0].rsplit(".", 1)[1] for name in qwen2.adapter()} == {"q_proj", "v_proj"}
    assert all(name in dict(qwen2.named_parameters()) for name in qwen2.adapter())


def test_a_state_carries_the_policy_with_its_frozen_a(folder: Path) -> None:
    first = valued(folder, seed=1, freeze_a=True)
    shake(first, 0.3)
    second = valued(folder, seed=2, freeze_a=True)
    ids, mask = padded(TEXTS, "left")
    with torch.no_grad():
        expected = first(ids, mask)[0]
        assert not torch.equal(second(ids, mask)[0], expected)
        # What is trained alone does not say what the policy is.
        second.load_state_dict(trainable_state(first), strict=False)
        assert not torch.equal(second(ids, mask)[0], expected)
        second.load_adapter({**first.adapter(), "something/else": torch.zeros(1)})
        assert torch.equal(second(ids, mask)[0], expected)
    state = first.adapter()
    assert not any(tensor.requires_grad for tensor in state.values())
    name = next(n for n in state if "lora_A" in n)
    del state[name]
    with pytest.raises(KeyError, match="lora_A"):
        second.load_adapter(state)


def test_the_seed_decides_a(folder: Path) -> None:
    first, same, other = (valued(folder, seed=s, freeze_a=True).adapter() for s in (1, 1, 2))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first if "lora_A" in name)


def test_configurations_are_settings_of_their_model(root: Path) -> None:
    found = {}
    for path in sorted((root / "conf" / "model").glob("*_lora.yaml")):
        node = yaml.safe_load(path.read_text())
        if node["_target_"].endswith(LanguageModelSpec.__name__):
            found[path.stem] = build(node, ModelSpec, "model")
    assert set(found) == {"gpt2_lora", "gpt2_medium_lora", "gpt2_large_lora", "qwen2_5_lora"}
    assert all(isinstance(settings, LanguageModelSpec) for settings in found.values())


def test_mistakes_end_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^model\.target_modules=.*absent") as error:
        valued(random_model("gpt2", tmp_path), target_modules=("absent",))
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------ noise on both factors


def added(network: ValuedPolicy, state: dict[str, Tensor]) -> Tensor:
    """Return what an adapter's state adds to all adapted matrices, as peft computes it."""
    network.load_adapter(state)
    layers: list[Any] = [m for m in network.modules() if hasattr(m, "get_delta_weight")]
    return torch.cat([layer.get_delta_weight("default").detach().flatten() for layer in layers]).double()


def noised(state: dict[str, Tensor], std: float, seed: int, both: bool) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    noise = {name: std * torch.randn(t.shape, generator=generator) for name, t in state.items()}
    return {name: t + noise[name] if both or "lora_B" in name else t for name, t in state.items()}


def spread(network: ValuedPolicy, std: float, both: bool, draws: int = 200) -> float:
    """Return the variance per entry that noise on the factors brings to what the adapter adds."""
    start = {name: t.clone() for name, t in network.adapter().items()}
    clean = added(network, start)
    found = [added(network, noised(start, std, seed, both)) - clean for seed in range(draws)]
    network.load_adapter(start)
    return float(torch.stack(found).square().mean())


def test_noise_on_both_factors_multiplies_and_on_b_alone_it_adds(tmp_path: Path) -> None:
    """B @ A with A frozen has variance s^2 * r * var(A); with noise on A too, s^4 * r is on top of that.

    The adapter is fresh: B is 0, A is drawn with variance 1 / (3 * inputs), and the scale is alpha / r = 2.
    """
    network = valued(random_model("gpt2", tmp_path), freeze_a=True)
    a = torch.cat([t.flatten() for name, t in network.adapter().items() if "lora_A" in name])
    of_a, rank, scale = float(a.square().mean()), 4, 2.0
    assert of_a == pytest.approx(1 / (3 * 32), rel=0.2)
    for std in (0.05, 0.1, 0.2):
        alone, together = (spread(network, std, both) for both in (False, True))
        assert alone == pytest.approx(scale**2 * rank * std**2 * of_a, rel=0.03)
        assert together == pytest.approx(scale**2 * rank * std**2 * (of_a + std**2), rel=0.03)
    # The largest noise has more than three times the variance of A.
    assert together / alone == pytest.approx(1 + 0.2**2 / of_a, rel=0.05)


def test_the_mean_of_adapters_is_the_adapter_of_the_mean_with_a_frozen(tmp_path: Path) -> None:
    network = valued(random_model("gpt2", tmp_path), freeze_a=True)
    start = {name: t.clone() for name, t in network.adapter().items()}
    for both in (False, True):
        clients = [noised(start, 0.2, seed, both) for seed in range(3)]
        mean = {name: torch.stack([c[name] for c in clients]).mean(0) for name in start}
        separate = torch.stack([added(network, c) for c in clients]).mean(0)
        off = (added(network, mean) - separate).norm() / separate.norm()
        assert off > 0.1 if both else off < 1e-6


# --------------------------------------------------------------------------------------------- gradients of one text


Loss = Callable[[ValuedPolicy, list[int], str], Tensor]


def responses(mask: Tensor) -> Tensor:
    """Return the mask without each text's first token, which is its prompt."""
    return mask * (mask.cumsum(1) > 1)


def sft(network: ValuedPolicy, chosen: list[int], side: str) -> Tensor:
    ids, mask = padded([TEXTS[i] for i in chosen], side)
    own = responses(mask)
    each = token_log_probabilities(network.policy(ids, mask, None), ids, own)
    return -each.sum(1) / own.sum(1)


def pair(network: ValuedPolicy, chosen: list[int], side: str) -> Tensor:
    first = network.scores(*padded([TEXTS[i] for i in chosen], side))
    second = network.scores(*padded([REJECTED[i] for i in chosen], side))
    return preference_nll(first - second, torch.ones_like(first))


def ppo(network: ValuedPolicy, chosen: list[int], side: str, texts: Sequence[list[int]] = TEXTS) -> Tensor:
    """Policy and value loss in one, with what was noted at the drawing depending on text and place alone."""
    ids, mask = padded([texts[i] for i in chosen], side)
    own = responses(mask)[:, 1:]
    logits, values = network(ids, mask)
    log_probs = token_log_probabilities(logits, ids, responses(mask))
    place = own.cumsum(1)
    noted = torch.sin(3.0 * place + torch.tensor(chosen)[:, None])
    # A ratio of 1 on both sides of the bound, values away from what they were.
    old = log_probs.detach() + 0.15 * torch.cos(5.0 * place)
    policy_loss = clipped_policy_loss(log_probs, old, noted, own, 0.1)
    return policy_loss + 0.5 * value_loss(values[:, :-1], values[:, :-1].detach() + 0.2 * noted, noted, own, 0.1)


LOSSES: dict[str, Loss] = {"sft": sft, "pair": pair, "ppo": ppo}


def alone(network: ValuedPolicy, loss: Loss) -> list[list[Tensor]]:
    """The oracle: every text by itself, without padding, through autograd; by text and parameter."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    return [
        list(torch.autograd.grad(loss(network, [i], "left").sum(), parameters, retain_graph=False))
        for i in range(len(TEXTS))
    ]


def joined(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.flatten().double() for t in tensors])


def found_by(network: ValuedPolicy, loss: Loss, side: str, mode: GradSample, clip: float) -> Tensor:
    def losses(chosen: Tensor) -> Tensor:
        return loss(network, chosen.tolist(), side)

    gradients = unit_gradients(network, DPSGD("example", clip, 0.5, mode))
    try:
        return joined(gradients.clipped_sum(losses, torch.arange(len(TEXTS))))
    finally:
        gradients.close()


def prepared(folder: Path, kind: str, freeze_a: bool) -> ValuedPolicy:
    network = valued(folder, move=0.1, freeze_a=freeze_a)
    network.head.requires_grad_(kind != "sft")
    return network


@pytest.mark.parametrize("freeze_a", mostly_slow([False, True], [False]))
@pytest.mark.parametrize("kind", list(LOSSES))
def test_gradients_of_a_batch_are_those_of_each_text_alone(
    folder: Path, kind: str, freeze_a: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, loss = prepared(folder, kind, freeze_a), LOSSES[kind]
    each = [joined(gradients) for gradients in alone(network, loss)]
    norms = torch.stack([g.norm() for g in each])
    bound = float(norms.median())
    expected = torch.stack([g * min(1.0, bound / float(g.norm())) for g in each]).sum(0)
    seen: list[Tensor] = []
    clip_units = unit_gradients_module.clip_units

    def noting(gradients: Sequence[Tensor], clip: float) -> list[Tensor]:
        seen.extend(joined([g[row] for g in gradients]) for row in range(len(gradients[0])))
        return clip_units(gradients, clip)

    monkeypatch.setattr(unit_gradients_module, "clip_units", noting)
    modes: tuple[GradSample, ...] = ("loop", "hooks", "functorch")
    for side in ("left", "right"):
        for mode in modes:
            seen.clear()
            total = found_by(network, loss, side, mode, bound)
            assert len(seen) == len(TEXTS)
            for row, gradient in enumerate(seen):
                assert (gradient - each[row]).norm() <= 1e-5 * each[row].norm(), (side, mode, row)
            assert (total - expected).norm() <= 1e-5 * expected.norm(), (side, mode)


@pytest.mark.parametrize("changes", [{"dropout": 0.5}, {"dtype": "bfloat16", "move": 0.1}])
@pytest.mark.parametrize("kind", list(LOSSES))
def test_hooks_are_checked_on_the_same_draws_and_the_same_rounding(
    folder: Path, kind: str, changes: dict[str, Any]
) -> None:
    """One text by itself leaves out other inputs of a fresh adapter, and its sums are rounded otherwise."""
    network = valued(folder, **changes)
    network.head.requires_grad_(kind != "sft")
    total = found_by(network.train(), LOSSES[kind], "left", "hooks", WIDE)
    assert (total != 0).any()


@sides
@pytest.mark.parametrize("kind", ["sft", "ppo"])
def test_ghost_clipping_serves_where_the_body_is_passed_once(folder: Path, kind: str, side: str) -> None:
    network, loss = prepared(folder, kind, False), LOSSES[kind]
    each = [joined(gradients) for gradients in alone(network, loss)]
    bound = float(torch.stack([g.norm() for g in each]).median())
    expected = torch.stack([g * min(1.0, bound / float(g.norm())) for g in each]).sum(0)
    total = found_by(network, loss, side, "ghost", bound)
    # It clips to a hair less than the bound.
    assert (total - expected).norm() <= 2e-4 * expected.norm()


def test_ghost_clipping_refuses_pairs(folder: Path) -> None:
    with pytest.raises(UserError, match="grad_sample=ghost"):
        found_by(prepared(folder, "pair", False), pair, "left", "ghost", 1.0)


def test_a_head_that_the_loss_does_not_know_must_not_be_trained(folder: Path) -> None:
    with pytest.raises(RuntimeError, match=r"no unit's loss depends on it: head\.weight, head\.bias"):
        found_by(valued(folder, move=0.1), sft, "left", "hooks", 1.0)


def test_a_text_s_gradient_is_the_same_to_the_bit_whatever_the_others_say(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With PPO's losses, before clipping; other texts of the same length stand in for text 1."""
    network = prepared(folder, "ppo", False)
    seen: list[list[Tensor]] = []
    clip_units = unit_gradients_module.clip_units

    def noting(gradients: Sequence[Tensor], clip: float) -> list[Tensor]:
        seen.append([joined([g[row] for g in gradients]) for row in range(len(gradients[0]))])
        return clip_units(gradients, clip)

    monkeypatch.setattr(unit_gradients_module, "clip_units", noting)
    for other in ([6, 7, 8], [6, 15, 2]):
        loss = functools.partial(ppo, texts=[TEXTS[0], other, *TEXTS[2:]])
        found_by(network, loss, "left", "hooks", 1.0)
    first, second = seen
    assert not torch.equal(first[1], second[1])
    assert all(torch.equal(first[row], second[row]) for row in (0, 2, 3, 4))
