"""Control models: even weights to begin with, a preference that is heard however it is told, and caches."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedalign.errors import UserError
from fedalign.models.control import Control, ControlSpec, Told, log_weights
from fedalign.models.control_constant import ConstantSpec
from fedalign.models.control_transformer import TransformerSpec
from tests.language_models import LENGTH, WORDS

N, PREFERENCES, V = 3, 4, len(WORDS)
IDS = torch.tensor([[2, 3, 4, 5, 9], [6, 7, 8, 9, 3], [12, 4, 4, 17, 6]])
MASK = torch.ones_like(IDS)
WAYS = ("vector", "text", "id")
ACTIVE = torch.tensor([[True, True, True], [True, False, True], [False, True, False]])


def transformer(preference: str = "vector", **changes: Any) -> TransformerSpec:
    values: dict[str, Any] = {
        "pretrained": None,
        "hidden": 16,
        "layers": 2,
        "heads": 2,
        "intermediate": 24,
        "max_tokens": 32,
        "preference": preference,
    }
    return TransformerSpec(**{**values, **changes})


SPECS: list[ControlSpec] = [ConstantSpec(8), *map(transformer, WAYS)]
specs = pytest.mark.parametrize("spec", SPECS, ids=["constant", *WAYS])
readers = pytest.mark.parametrize("spec", SPECS[1:], ids=WAYS)


def build(spec: ControlSpec, seed: int = 0) -> Control:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return spec.build(N, PREFERENCES, V, torch.device("cpu")).eval()


def trained(spec: ControlSpec) -> Control:
    """A network that tells texts and preferences apart: with its first weights, what is long past hardly counts."""
    network: Any = build(spec)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for head in (network.head, network.value):
            head.weight.normal_(generator=generator)
            head.bias.normal_(generator=generator)
        for parameter in network.body.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3, generator=generator)
    found: Control = network
    return found


def told(rows: int = 3, **changes: Any) -> Told:
    values: dict[str, Any] = {
        "vector": torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.5], [0.0, 1.0, 0.0]]),
        "active": ACTIVE,
        "number": torch.tensor([0, 1, 3]),
        "opening": (torch.tensor([[1, 6, 7], [2, 3, 4], [1, 1, 9]]), torch.tensor([[0, 1, 1], [1, 1, 1], [0, 0, 1]])),
        "fixed": torch.zeros(3, N),
    }
    return Told(**{**values, **changes}).map(lambda tensor: tensor[:rows])


def scored(network: Control, about: Told, ids: Tensor = IDS, mask: Tensor = MASK) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        scores, values, cache = network.advance(about, ids, mask, None, keep_cache=False)
    assert cache is None
    assert scores.shape == (*ids.shape, N)
    assert values.shape == ids.shape
    return scores, values


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


# ----------------------------------------------------------------------------------------------------------- weights


@specs
def test_a_fresh_network_weighs_all_active_experts_alike(spec: ControlSpec) -> None:
    scores, values = scored(build(spec), told())
    found = log_weights(scores, told()).exp()
    wanted = ACTIVE / ACTIVE.sum(1, keepdim=True)
    torch.testing.assert_close(found, wanted[:, None].expand(-1, 5, -1))
    assert not values.any()


@specs
def test_experts_that_are_not_active_have_no_weight(spec: ControlSpec) -> None:
    scores, _ = scored(trained(spec), told())
    found = log_weights(scores, told())
    assert torch.equal(found == -math.inf, ~ACTIVE[:, None].expand(-1, 5, -1))
    torch.testing.assert_close(found.exp().sum(2), torch.ones(3, 5))
    assert not found[2, :, 1].any(), "the only active expert has all the weight"


def test_fixed_weights_hold_whatever_the_network_says() -> None:
    fixed = torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    about = told(fixed=fixed)
    scores = 5 * torch.randn(3, 5, N, generator=torch.Generator().manual_seed(0))
    scores.requires_grad_()
    found = log_weights(scores, about)
    torch.testing.assert_close(found[0].exp(), fixed[:1].expand(5, -1))
    torch.testing.assert_close(found[2].exp(), fixed[2:].expand(5, -1))
    torch.testing.assert_close(found[1], log_weights(scores, told())[1])
    assert torch.equal(log_weights(scores, about, torch.tensor([9.0, 0.0, -9.0]))[[0, 2]], found[[0, 2]])
    (gradient,) = torch.autograd.grad(found.exp().square().sum(), scores)
    assert gradient.isfinite().all()
    assert not gradient[[0, 2]].any()
    assert gradient[1].any()


def test_a_bias_adds_to_all_scores() -> None:
    scores = torch.randn(3, 5, N, generator=torch.Generator().manual_seed(0))
    bias = torch.tensor([1.0, 0.0, -2.0], requires_grad=True)
    found = log_weights(scores, told(), bias)
    torch.testing.assert_close(found, log_weights(scores + bias.detach(), told()))
    assert not torch.allclose(found[0], log_weights(scores, told())[0])
    (gradient,) = torch.autograd.grad(found[1, :, 0].sum(), bias)
    assert gradient[1] == 0
    assert gradient[0] > 0 > gradient[2]


# -------------------------------------------------------------------------------------------------- the preference


def other_vector(about: Told) -> Told:
    return dataclasses.replace(about, vector=about.vector + torch.tensor([0.5, -1.0, 1.0]))


def other_words(about: Told) -> Told:
    return dataclasses.replace(about, opening=(about.opening[0] + 5, about.opening[1]))


def other_number(about: Told) -> Told:
    return dataclasses.replace(about, number=(about.number + 1) % PREFERENCES)


CHANGES: dict[str, Callable[[Told], Told]] = {"vector": other_vector, "text": other_words, "id": other_number}


@pytest.mark.parametrize("way", WAYS)
def test_a_preference_is_heard_in_the_way_that_it_is_told(way: str) -> None:
    network = trained(transformer(way))
    assert network.in_words == (way == "text")
    before, values = scored(network, told())
    for name, change in CHANGES.items():
        after, others = scored(network, change(told()))
        if name == way:
            for row in range(3):
                assert (after - before)[row].abs().max() > 1e-2
                assert (others - values)[row].abs().max() > 1e-2
        else:
            assert torch.equal(after, before)
            assert torch.equal(others, values)


def test_the_constant_network_hears_the_vector_and_nothing_else() -> None:
    network = trained(ConstantSpec(8))
    before, values = scored(network, told())
    assert (before == before[:, :1]).all()
    assert (values == values[:, :1]).all()
    after, _ = scored(network, other_words(other_number(told())), IDS.flip(1), MASK)
    assert torch.equal(after, before)
    assert (scored(network, other_vector(told()))[0] - before).abs().amax((1, 2)).min() > 1e-2


def test_a_number_that_is_none_is_neutral_and_stays_so() -> None:
    network: Any = trained(transformer("id"))
    nobody = dataclasses.replace(told(), number=torch.full((3,), -1))
    assert not network.told.weight[-1].any()
    neutral, _ = scored(network, nobody)
    first = dataclasses.replace(told(), number=torch.zeros(3, dtype=torch.int64))
    assert (scored(network, first)[0] - neutral).abs().amax((1, 2)).min() > 1e-2
    # What is learned about others does not reach it.
    with torch.no_grad():
        network.told.weight[:-1] += 1.0
    assert torch.equal(scored(network, nobody)[0], neutral)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1, weight_decay=0.1)
    number = torch.tensor([0, -1, 3])
    network.advance(dataclasses.replace(told(), number=number), IDS, MASK, None)[0].square().sum().backward()
    optimizer.step()
    assert not network.told.weight[-1].any()
    assert network.told.weight.shape == (PREFERENCES + 1, 16)


# ---------------------------------------------------------------------------------------------------------- the text


@readers
def test_weights_follow_the_text(spec: ControlSpec) -> None:
    network = trained(spec)
    before, _ = scored(network, told())
    changed = IDS.clone()
    changed[:, 2] += 1
    after, _ = scored(network, told(), changed)
    close(after[:, :2], before[:, :2])
    assert ((after - before)[:, 2:].abs().amax(2) > 1e-2).all(), "a token is seen by those after it"


@specs
@pytest.mark.parametrize("steps", [(3, 1, 1), (1, 4)])
def test_a_cache_changes_nothing(spec: ControlSpec, steps: tuple[int, ...]) -> None:
    network = trained(spec)
    mask = MASK.clone()
    mask[1, :2] = 0
    whole = scored(network, told(), mask=mask)
    cache, start, parts = None, 0, []
    for new in steps:
        with torch.no_grad():
            *found, cache = network.advance(
                told(), IDS[:, start : start + new], mask[:, : start + new], cache, keep_cache=True
            )
        parts.append(found)
        start += new
    for number in range(2):
        close(torch.cat([part[number] for part in parts], 1)[mask.bool()], whole[number][mask.bool()])


@specs
def test_padding_on_the_left_moves_nothing(spec: ControlSpec) -> None:
    network = trained(spec)
    pad = torch.ones(3, 4, dtype=torch.int64)
    found, values = scored(network, told(), torch.cat([pad, IDS], 1), torch.cat([0 * pad, MASK], 1))
    wanted, wanted_values = scored(network, told())
    close(found[:, 4:], wanted)
    close(values[:, 4:], wanted_values)


@specs
def test_a_row_is_what_it_is_alone_with_its_opening_unpadded(spec: ControlSpec) -> None:
    network = trained(spec)
    together, _ = scored(network, told())
    for row in range(3):
        at = slice(row, row + 1)
        alone = told().map(lambda tensor, at=at: tensor[at])
        said = alone.opening[1][0].bool()
        opening = alone.opening[0][:, said], alone.opening[1][:, said]
        close(scored(network, dataclasses.replace(alone, opening=opening), IDS[at], MASK[at])[0], together[at])


# ------------------------------------------------------------------------------------------------------------- specs


@specs
def test_the_generator_alone_decides(spec: ControlSpec) -> None:
    first, again, other = (build(spec, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@specs
def test_every_part_learns(spec: ControlSpec) -> None:
    network = trained(spec).train()
    scores, values, _ = network.advance(told(), IDS, MASK, None)
    (scores.square().sum() + values.square().sum()).backward()
    tables = ("embed_tokens",)  # of which some rows are not used
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any() or any(table in name for table in tables), name


def test_settings_act() -> None:
    assert [spec.reads_texts for spec in SPECS] == [False, True, True, True]
    network: Any = build(transformer())
    config = network.body.config
    sizes = config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.intermediate_size
    assert sizes == (16, 2, 2, 24)
    assert network.max_tokens == 32
    assert network.experts == N
    assert build(ConstantSpec(8)).max_tokens is None
    wide: Any = build(ConstantSpec(5))
    assert wide.head.weight.shape == (N, 5)


@pytest.mark.parametrize("way", WAYS)
def test_a_pretrained_body_reads_texts(gpt2: Path, way: str) -> None:
    spec = transformer(way, pretrained=str(gpt2))
    network: Any = trained(spec)
    assert network.body.config.model_type == "gpt2"
    assert network.max_tokens == LENGTH
    before, _ = scored(network, told())
    assert (scored(network, CHANGES[way](told()))[0] - before).abs().amax((1, 2)).min() > 1e-3
    even, _ = scored(build(spec), told())
    assert not even.any()
    # A body of its own: two runs in one process do not train one network.
    other: Any = build(spec)
    assert other.body.wte.weight.data_ptr() != network.body.wte.weight.data_ptr()
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_a_pretrained_body_that_reads_other_tokens_is_refused(gpt2: Path) -> None:
    with pytest.raises(UserError, match=r"^method\.control\.pretrained=.*reads 20 tokens.*21") as error:
        transformer(pretrained=str(gpt2)).build(N, PREFERENCES, V + 1, torch.device("cpu"))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"^method\.control\.pretrained=\./absent: no such folder"):
        build(transformer(pretrained="./absent"))


def test_what_is_told_moves_as_one() -> None:
    rows = torch.tensor([2, 0])
    found = told().map(lambda tensor: tensor[rows])
    for name in ("vector", "active", "number", "fixed"):
        assert torch.equal(getattr(found, name), getattr(told(), name)[rows])
    assert all(torch.equal(a, b[rows]) for a, b in zip(found.opening, told().opening, strict=True))
