"""Merged decoding: one expert alone is that expert, rows do not meet, and what is kept is what was drawn from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedalign.errors import UserError
from fedalign.models.causal import CausalModel
from fedalign.models.control import Control, ControlSpec, Told, log_weights
from fedalign.models.control_constant import ConstantSpec
from fedalign.models.control_transformer import TransformerSpec
from fedalign.models.experts import Experts, Pairs, TopTokens
from fedalign.models.generation import generate
from fedalign.models.lora_experts import LoraExperts
from fedalign.models.merged_generation import MergedText, Merger, generate_merged
from fedalign.models.mixing import Linear, LogLinear, Mixing, spoken_of
from fedalign.models.policy import ConditionalPolicy
from tests.language_models import LENGTH, WORDS, policy, random_model, shake

N, V, NEW = 3, len(WORDS), 8
PROMPTS = [[2, 3, 4], [12, 7], [5, 9, 8, 6, 3]]
ACTIVE = torch.tensor([[True, True, True], [True, False, True], [False, True, True]])
DRAWS = torch.rand(3, NEW, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
mixings = pytest.mark.parametrize("mixing", [Linear(), LogLinear()])


@pytest.fixture(scope="module", params=["gpt2", "qwen2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def policies(folder: Path) -> list[ConditionalPolicy]:
    """The experts as policies without z, each in a network of its own."""
    made = []
    for number in range(N):
        expert = policy(folder, 0, seed=number, rank=2 + number)
        shake(expert, 0.2, seed=number)
        made.append(expert)
    return made


@pytest.fixture(scope="module")
def experts(folder: Path, policies: list[ConditionalPolicy]) -> LoraExperts:
    found = LoraExperts(folder, ["plain", "terse", "kind"], "float32", "cpu")
    found.load([expert.transformer.adapter() for expert in policies], [8.0 / (2 + number) for number in range(N)])
    return found


def control(preference: str = "vector", spec: ControlSpec | None = None) -> Control:
    """A network that tells texts and preferences apart."""
    sizes = {"hidden": 16, "layers": 2, "heads": 2, "intermediate": 24, "max_tokens": LENGTH}
    spec = spec or TransformerSpec(None, preference=preference, **sizes)
    network: Any = spec.build(N, 4, V, torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.4, generator=generator)
    found: Control = network
    return found


def told(rows: list[int] | None = None, **changes: Any) -> Told:
    values: dict[str, Any] = {
        "vector": torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.5], [0.0, 1.0, 0.3]]),
        "active": ACTIVE,
        "number": torch.tensor([0, 1, 3]),
        "opening": (torch.tensor([[1, 6, 7], [2, 3, 4], [1, 1, 9]]), torch.tensor([[0, 1, 1], [1, 1, 1], [0, 0, 1]])),
        "fixed": torch.zeros(3, N),
    }
    return Told(**{**values, **changes}).map(lambda tensor: tensor if rows is None else tensor[rows])


def padded(prompts: list[list[int]], extra: int = 0) -> tuple[Tensor, Tensor]:
    width = max(map(len, prompts)) + extra
    ids = torch.tensor([[1] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    return ids, mask


def merged(
    experts: Experts,
    about: Told | None = None,
    mixing: Mixing | None = None,
    network: Control | None = None,
    **more: Any,
) -> MergedText:
    prompts, new = more.pop("prompts", PROMPTS), more.pop("new", NEW)
    draws, bias, extra = more.pop("draws", DRAWS), more.pop("bias", None), more.pop("extra", 0)
    merger = Merger(experts, network or control(), mixing or Linear(), bias)
    return generate_merged(merger, about or told(), *padded(prompts, extra), new, draws, **more)


def endless(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(CausalModel, "end_tokens", ())


def one_hot(chosen: list[int]) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(chosen), N).float()


# ------------------------------------------------------------------------------------------------------ one expert


@mixings
@pytest.mark.parametrize("chosen", range(N))
@pytest.mark.parametrize("draws", [DRAWS, None])
def test_all_weight_on_one_expert_writes_what_it_writes_alone(
    experts: LoraExperts, policies: list[ConditionalPolicy], mixing: Mixing, chosen: int, draws: Tensor | None
) -> None:
    about = told(active=torch.ones(3, N, dtype=torch.bool), fixed=one_hot([chosen] * 3))
    found = merged(experts, about, mixing, draws=draws)
    temperature = 0.0 if draws is None else 1.0
    alone = generate(policies[chosen], *padded(PROMPTS), None, NEW, temperature, None, draws=draws)
    assert torch.equal(found.tokens, alone)
    assert torch.equal(found.log_weights[:, 0].exp(), one_hot([chosen] * 3))


def test_experts_write_different_texts(policies: list[ConditionalPolicy]) -> None:
    each = [generate(expert, *padded(PROMPTS), None, 4, 1.0, None, draws=DRAWS).tolist() for expert in policies]
    assert each[0] != each[1] != each[2] != each[0]


def test_each_row_may_have_an_expert_of_its_own(experts: LoraExperts, policies: list[ConditionalPolicy]) -> None:
    chosen = [2, 0, 1]
    fixed = one_hot(chosen)
    found = merged(experts, told(active=fixed > 0, fixed=fixed), full_length=True).tokens
    for row, expert in enumerate(chosen):
        alone = generate(policies[expert], *padded([PROMPTS[row]]), None, NEW, 1.0, None, draws=DRAWS[row : row + 1])
        assert torch.equal(found[row : row + 1, : alone.shape[1]], alone)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_a_temperature_is_that_of_every_expert(
    experts: LoraExperts, policies: list[ConditionalPolicy], temperature: float
) -> None:
    about = told(active=torch.ones(3, N, dtype=torch.bool), fixed=one_hot([1, 1, 1]))
    found = merged(experts, about, temperature=temperature)
    alone = generate(policies[1], *padded(PROMPTS), None, NEW, temperature, None, draws=DRAWS)
    assert torch.equal(found.tokens, alone)
    picked = policies[1].eval()(*padded(PROMPTS), None)[:, -1].div(temperature).log_softmax(1)
    wanted = picked.gather(1, found.tokens[:, :1])[:, 0]
    torch.testing.assert_close(found.spoken.chosen[:, 0, 1], wanted, atol=1e-4, rtol=1e-4)


# -------------------------------------------------------------------------------------------------------- the record


@mixings
@pytest.mark.parametrize("preference", ["vector", "text", "id"])
def test_what_is_kept_is_what_one_pass_over_the_whole_text_finds(
    experts: LoraExperts, mixing: Mixing, preference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless(monkeypatch)
    network, bias = control(preference), torch.tensor([0.5, 0.0, -0.5])
    found = merged(experts, mixing=mixing, network=network, bias=bias, whole=True)
    ids, mask = padded(PROMPTS)
    width, pairs = ids.shape[1], Pairs.of(ACTIVE)
    ids, mask = torch.cat([ids, found.tokens], 1), torch.cat([mask, torch.ones_like(found.tokens)], 1)
    with torch.no_grad():
        scores, _, _ = network.eval().advance(told(), ids, mask, None)
    log_probs, _ = experts.advance(pairs, ids, mask, None)
    wanted = log_weights(scores[:, width - 1 : -1], told(), bias)
    torch.testing.assert_close(found.log_weights.exp(), wanted.exp(), atol=1e-4, rtol=1e-4)
    spoken = spoken_of(pairs, log_probs[:, width - 1 : -1], found.tokens, (3, N), True)
    torch.testing.assert_close(found.spoken.chosen, spoken.chosen, atol=1e-4, rtol=1e-4)
    assert found.spoken.whole is not None
    assert spoken.whole is not None
    torch.testing.assert_close(found.spoken.whole, spoken.whole, atol=1e-4, rtol=1e-4)
    assert torch.equal(found.spoken.tokens, found.tokens)
    assert (found.log_weights.exp().amax(1) - found.log_weights.exp().amin(1)).max() > 0.05, "weights must move"
    # Drawn from the mixture: inverting its cumulative distribution at the draws gives the tokens again.
    every = [
        mixing.log_probability(wanted, dataclasses.replace(spoken, tokens=torch.full_like(found.tokens, token)))
        if mixing.needs_whole
        else torch.logsumexp(wanted + spoken.whole[..., token], 2)
        for token in range(V)
    ]
    cumulative = torch.stack(every, 2).exp().double().cumsum(2)
    assert torch.equal((cumulative <= DRAWS[:, :, None]).sum(2), found.tokens)


@pytest.mark.parametrize("whole", [True, False])
def test_distributions_are_kept_where_that_is_asked(experts: LoraExperts, whole: bool) -> None:
    found = merged(experts, whole=whole)
    steps = found.tokens.shape[1]
    assert found.spoken.chosen.shape == (3, steps, N)
    assert (found.spoken.whole is not None) == whole
    if found.spoken.whole is not None:
        assert found.spoken.whole.shape == (3, steps, N, V)
        picked = found.spoken.whole.gather(3, found.tokens[:, :, None, None].expand(-1, -1, N, 1))[..., 0]
        assert torch.equal(picked, found.spoken.chosen)
        assert not found.spoken.whole[~ACTIVE[:, None].expand(-1, steps, -1)].any()


def test_a_listener_hears_every_step_before_the_next(experts: LoraExperts, monkeypatch: pytest.MonkeyPatch) -> None:
    end = int(merged(experts, full_length=True).tokens[0, 1])
    monkeypatch.setattr(CausalModel, "end_tokens", (end,))
    monkeypatch.setattr(CausalModel, "pad_token", 19)
    heard: list[tuple[Tensor, Tensor, Tensor]] = []
    passes: list[int] = []
    advance = LoraExperts.advance

    def counting(*args: Any, **more: Any) -> tuple[Tensor, Any]:
        passes.append(len(heard))
        return advance(*args, **more)

    monkeypatch.setattr(LoraExperts, "advance", counting)
    found = merged(experts, on_token=lambda *step: heard.append(step))
    steps = found.tokens.shape[1]
    assert passes == list(range(steps))
    assert torch.equal(torch.stack([token for token, _, _ in heard], 1), found.tokens)
    assert torch.equal(torch.stack([weights for _, weights, _ in heard], 1), found.log_weights)
    over = torch.cat([torch.zeros(3, 1), (found.tokens == end).cumsum(1)[:, :-1]], 1) > 0
    assert torch.equal(torch.stack([ended for _, _, ended in heard], 1), over)
    assert over[0, 2], "one row must end before another"
    assert (found.tokens[over] == 19).all()


# ----------------------------------------------------------------------------------------------------------- the rows


@mixings
@pytest.mark.parametrize("preference", ["vector", "text"])
def test_a_row_does_not_depend_on_others(experts: LoraExperts, mixing: Mixing, preference: str) -> None:
    network = control(preference)
    whole = merged(experts, mixing=mixing, network=network, full_length=True)
    for rows in ([2, 0], [1]):
        part = merged(
            experts,
            told(rows),
            mixing,
            network,
            prompts=[PROMPTS[row] for row in rows],
            draws=DRAWS[rows],
            extra=2,
            full_length=True,
        )
        assert torch.equal(part.tokens, whole.tokens[rows])
        torch.testing.assert_close(part.log_weights.exp(), whole.log_weights[rows].exp(), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(part.spoken.chosen, whole.spoken.chosen[rows], atol=1e-4, rtol=1e-4)


def test_texts_end_unless_a_width_is_wanted(experts: LoraExperts, monkeypatch: pytest.MonkeyPatch) -> None:
    endless(monkeypatch)
    free = merged(experts, prompts=PROMPTS[:1], about=told([0]), draws=DRAWS[:1]).tokens[0].tolist()
    assert len(free) == NEW
    end = free[3]
    stop = free.index(end) + 1
    monkeypatch.setattr(CausalModel, "end_tokens", (end,))
    monkeypatch.setattr(CausalModel, "pad_token", 19)
    for full_length in (False, True):
        found = merged(experts, prompts=PROMPTS[:1], about=told([0]), draws=DRAWS[:1], full_length=full_length)
        assert found.tokens[0].tolist() == free[:stop] + [19] * (NEW - stop) * full_length
        assert found.log_weights.shape[1] == found.spoken.chosen.shape[1] == found.tokens.shape[1]
        assert found.log_weights.isfinite().all()


def test_without_draws_the_likeliest_token_is_taken(experts: LoraExperts, monkeypatch: pytest.MonkeyPatch) -> None:
    endless(monkeypatch)
    found = merged(experts, draws=None, whole=True)
    assert found.spoken.whole is not None
    mixed = (found.log_weights.exp()[..., None] * found.spoken.whole.exp()).sum(2)
    assert torch.equal(mixed.argmax(2), found.tokens)
    assert torch.equal(merged(experts, draws=None).tokens, found.tokens)


def test_a_bias_and_a_preference_change_what_is_said(experts: LoraExperts) -> None:
    network = control(spec=ConstantSpec(8))
    before = merged(experts, network=network, full_length=True)
    weights = before.log_weights.exp()
    torch.testing.assert_close(weights, weights[:, :1].expand(-1, NEW, -1))
    bias = merged(experts, network=network, bias=torch.tensor([9.0, 0.0, -9.0]), full_length=True)
    vector = merged(experts, told(vector=-3 * told().vector), network=network, full_length=True)
    for after in (bias, vector):
        assert not torch.allclose(after.log_weights.exp(), weights, atol=0.05)
        assert not torch.equal(after.tokens, before.tokens)


@mixings
@pytest.mark.parametrize("draws", [DRAWS, DRAWS.new_full((3, NEW), 1.0 - 1e-12), None])
def test_top_tokens_never_make_a_text_impossible(experts: LoraExperts, mixing: Mixing, draws: Tensor | None) -> None:
    found = merged(TopTokens(experts, 1, 1e-6), mixing=mixing, draws=draws, whole=True, full_length=True)
    assert found.spoken.chosen.isfinite().all()
    assert found.spoken.whole is not None
    assert found.spoken.whole.isfinite().all()
    assert mixing.log_probability(found.log_weights, found.spoken).isfinite().all()
    assert ((found.tokens >= 0) & (found.tokens < V)).all()


def test_the_control_model_is_in_evaluation_mode_meanwhile_and_as_before_afterwards(experts: LoraExperts) -> None:
    network = control()
    modes: list[bool] = []
    for training in (True, False):
        network.train(training)
        merged(experts, network=network, on_token=lambda *_: modes.append(network.training))
        assert network.training == training

    def stop(*_: Any) -> None:
        raise KeyError

    network.train()
    with pytest.raises(KeyError):
        merged(experts, network=network, on_token=stop)
    assert network.training
    assert not any(modes)


# -------------------------------------------------------------------------------------------------------- mistakes


def test_prompts_that_cannot_be_continued_are_refused(experts: LoraExperts) -> None:
    merger = Merger(experts, control(spec=ConstantSpec(8)), Linear())
    ids = torch.tensor([[2, 3], [4, 1]])
    with pytest.raises(ValueError, match="padded on the left"):
        generate_merged(merger, told([0, 1]), ids, torch.tensor([[1, 1], [1, 0]]), 2, None)
    ids, mask = padded([PROMPTS[0]], extra=4)
    generate_merged(merger, told([0]), ids, mask, LENGTH - 3, None)
    message = rf"^max_new_tokens={LENGTH - 2}: .* {LENGTH + 1} tokens, and the experts read {LENGTH}; lower it"
    with pytest.raises(UserError, match=message) as error:
        generate_merged(merger, told([0]), ids, mask, LENGTH - 2, None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("preference", "said"), [("vector", 0), ("text", 3)])
def test_what_the_control_model_cannot_read_is_refused(experts: LoraExperts, preference: str, said: int) -> None:
    sizes = {"hidden": 16, "layers": 1, "heads": 2, "intermediate": 24, "max_tokens": 15}
    network = control(spec=TransformerSpec(None, preference=preference, **sizes))
    longest = 15 - 5 - said
    merged(experts, network=network, new=longest, draws=None)
    message = rf"^max_new_tokens={longest + 1}: .* 16 tokens, and the control model reads 15; lower it"
    with pytest.raises(UserError, match=message):
        merged(experts, network=network, new=longest + 1, draws=None)
