"""Gradients of units against torch.func and one-by-one autograd, and what must not reach from one unit to another."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fedalign.errors import UserError
from fedalign.models.lora_body import LoraBody
from fedalign.models.reward import RewardHeads, RewardSpec
from fedalign.objectives.preference import preference_nll
from fedalign.privacy.local import DPSGD, GradSample
from fedalign.privacy.unit_gradients import Losses, clip_units, joint_norms, unit_gradients
from tests.language_models import random_model, shake

MODES: tuple[GradSample, ...] = ("loop", "hooks", "functorch")
UNITS, ROWS = 5, 3
WIDE = 1e6
"""A bound that clips nothing."""


def settings(mode: GradSample, clip: float = WIDE) -> DPSGD:
    return DPSGD("example", clip, 0.5, mode)


def clipped(network: nn.Module, losses: Losses, chosen: Tensor, mode: GradSample, clip: float = WIDE) -> list[Tensor]:
    gradients = unit_gradients(network, settings(mode, clip))
    try:
        return gradients.clipped_sum(losses, chosen)
    finally:
        gradients.close()


class Scorer(nn.Module):
    """Layers with formulas of Opacus' own and without, read twice a pair."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(4, 6), nn.LayerNorm(6), nn.GELU(), nn.PReLU(), nn.Linear(6, 6, bias=False), nn.Tanh()
        )
        self.score = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.score(self.layers(x)).squeeze(-1)  # type: ignore[no-any-return]


@pytest.fixture
def scorer() -> Scorer:
    """Give a network that compares two responses."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return Scorer()


def pairs(seed: int = 0, *shape: int) -> Tensor:
    """Return pairs of responses, shape (*shape, 2, 4)."""
    return torch.randn(*(shape or (UNITS,)), 2, 4, generator=torch.Generator().manual_seed(seed))


def pair_loss(network: nn.Module, pair: Tensor) -> Tensor:
    """Return losses of pairs, shape (...), from shape (..., 2, 4)."""
    return -nn.functional.logsigmoid(network(pair[..., 0, :]) - network(pair[..., 1, :]))


def of_pairs(network: nn.Module, data: Tensor) -> Losses:
    return lambda chosen: pair_loss(network, data[chosen])


def of_users(network: nn.Module, data: Tensor) -> Losses:
    """Return losses of users, whose pairs are rows one after the other for some layers."""

    def losses(chosen: Tensor) -> Tensor:
        mine = data[chosen]
        return pair_loss(network, mine.flatten(0, 1)).view(mine.shape[:2]).mean(1)

    return losses


def by_torch_func(network: nn.Module, data: Tensor, clip: float) -> list[Tensor]:
    """Return the clipped sum over the first dimension, without the package."""
    weights = {name: p.detach() for name, p in network.named_parameters()}

    def loss(weights: dict[str, Tensor], unit: Tensor) -> Tensor:
        values = functional_call(network, weights, (unit.reshape(-1, 4),)).view(-1, 2)
        return -nn.functional.logsigmoid(values[:, 0] - values[:, 1]).mean()

    each = vmap(grad(loss), (None, 0))(weights, data)
    flat = torch.cat([g.flatten(1) for g in each.values()], 1).double()
    factors = torch.minimum(torch.ones(len(data)), clip / flat.norm(dim=1))
    return [torch.einsum("u,u...->...", factors, g.double()) for g in each.values()]


def assert_close(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float = 1e-5) -> None:
    """Compare jointly: a parameter whose gradient nearly cancels is as exact as the others."""
    off = torch.cat([(a - b).flatten() for a, b in zip(found, expected, strict=True)]).norm()
    size = torch.cat([b.flatten() for b in expected]).norm()
    assert float(off) <= tolerance * float(size)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("clip", [WIDE, 0.3])
def test_clipped_sums_of_pairs_are_torch_func_s(scorer: Scorer, mode: GradSample, clip: float) -> None:
    data = pairs()
    found = clipped(scorer, of_pairs(scorer, data), torch.arange(UNITS), mode, clip)
    assert_close(found, by_torch_func(scorer, data, clip))
    assert {f.dtype for f in found} == {torch.float64}


@pytest.mark.parametrize("mode", MODES)
def test_a_user_s_rows_are_one_unit(scorer: Scorer, mode: GradSample) -> None:
    data = pairs(0, UNITS, ROWS)
    found = clipped(scorer, of_users(scorer, data), torch.arange(UNITS), mode, 0.2)
    assert_close(found, by_torch_func(scorer, data, 0.2), 1e-6)
    assert float(joint_norms([f[None] for f in found])) <= UNITS * 0.2


@pytest.mark.parametrize("mode", MODES)
def test_only_those_chosen_count_and_nobody_is_nothing(scorer: Scorer, mode: GradSample) -> None:
    data = pairs()
    chosen = torch.tensor([1, 4])
    assert_close(clipped(scorer, of_pairs(scorer, data), chosen, mode, 0.3), by_torch_func(scorer, data[chosen], 0.3))
    empty = clipped(scorer, of_pairs(scorer, data), chosen[:0], mode)
    assert all(not bool(tensor.any()) for tensor in empty)
    assert [e.shape for e in empty] == [p.shape for p in scorer.parameters()]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e4, 1e30])
def test_a_unit_s_joint_norm_is_within_the_bound(scorer: Scorer, mode: GradSample, scale: float) -> None:
    data = pairs()
    for unit in range(UNITS):
        found = clipped(scorer, lambda c: scale * pair_loss(scorer, data[c]), torch.tensor([unit]), mode, 0.7)
        norm = float(joint_norms([f[None] for f in found]))
        assert norm <= 0.7 * (1 + 1e-6)
        if scale > 1:
            assert norm == pytest.approx(0.7)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_unit_that_is_not_finite_adds_nothing(scorer: Scorer, mode: GradSample, value: float) -> None:
    data = pairs()
    data[0, 0, 0] = value
    found = clipped(scorer, of_pairs(scorer, data), torch.arange(UNITS), mode, 0.3)
    assert_close(found, by_torch_func(scorer, data[1:], 0.3))


@pytest.mark.parametrize("mode", MODES)
def test_another_unit_s_data_does_not_change_a_unit_by_a_bit(scorer: Scorer, mode: GradSample) -> None:
    """Mistakes 6 and 14: the others' losses weigh nothing here, so that the sum is one unit's clipped gradient."""
    alone = torch.zeros(UNITS)
    alone[2] = 1.0
    results = []
    for seed in (0, 1):
        data = pairs(seed)
        data[2] = pairs(7)[2]
        results.append(clipped(scorer, lambda c, d=data: alone[c] * pair_loss(scorer, d[c]), torch.arange(UNITS), mode))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert any(bool(tensor.any()) for tensor in results[0])


@pytest.mark.parametrize("mean_over", ["sequence", "batch"])
def test_masking_another_sequence_does_not_reach_a_unit_and_a_mean_over_the_batch_is_refused(mean_over: str) -> None:
    """Mistake 6: the mean over all tokens of a batch, as a language model's own loss is, is what must not be used."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 7))
    tokens = torch.randint(7, (3, 6))

    def first_of(kept: int) -> list[Tensor]:
        mask = torch.ones(3, 6)
        mask[1, kept:] = 0

        def losses(chosen: Tensor) -> Tensor:
            own = mask[chosen, 1:]
            logits = network(tokens[chosen])[:, :-1].transpose(1, 2)
            nll = nn.functional.cross_entropy(logits, tokens[chosen, 1:], reduction="none") * own
            length = own.sum(1) if mean_over == "sequence" else own.sum() / len(chosen)
            return (nll.sum(1) / length) * (chosen == 0)

        return clipped(network, losses, torch.arange(3), "hooks")

    whole = first_of(6)
    if mean_over == "sequence":
        assert all(torch.equal(a, b) for a, b in zip(whole, first_of(2), strict=True))
    else:
        with pytest.raises(UserError, match="a unit's loss depends on other units"):
            first_of(2)


def lora_heads(folder: Path, dropout: float = 0.0) -> RewardHeads:
    """Return a reward model on a tiny GPT-2 with LoRA, whose adapter acts."""
    body = LoraBody(str(random_model("gpt2", folder)), 2, 4.0, dropout, None, "last", "float32", "cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        heads = RewardSpec(body, 6, "reward").build(8, 1)
    shake(heads)
    return heads


def token_rows(*shape: int, seed: int = 3) -> Tensor:
    """Return rows of token ids of random lengths, shape (*shape, 8)."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(0, 20, (*shape, 8), generator=generator).float()
    lengths = torch.randint(2, 9, shape, generator=generator)
    return torch.where(torch.arange(8) < lengths[..., None], rows, -1.0)


def one_by_one(network: nn.Module, losses: Losses, units: int, clip: float) -> list[Tensor]:
    """Return the clipped sum from separate backward passes over separate forward passes."""
    total = [torch.zeros_like(p, dtype=torch.float64) for p in network.parameters() if p.requires_grad]
    for unit in range(units):
        network.zero_grad()
        losses(torch.tensor([unit])).sum().backward()
        each = [p.grad.double() for p in network.parameters() if p.requires_grad and p.grad is not None]
        norm = torch.cat([g.flatten() for g in each]).norm()
        for place, g in enumerate(each):
            total[place] += g * min(1.0, clip / float(norm))
    network.zero_grad()
    return total


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rows", [None, 3])
def test_lora_pairs_and_users_on_a_transformer(tmp_path: Path, mode: GradSample, rows: int | None) -> None:
    """Two forward passes before a backward one; a user's texts are rows of the transformer, but one row of the head."""
    heads = lora_heads(tmp_path)
    shape = (UNITS,) if rows is None else (UNITS, rows)
    first, second = token_rows(*shape), token_rows(*shape, seed=4)

    def losses(chosen: Tensor) -> Tensor:
        logits = heads.logits(first[chosen], second[chosen])[0]
        return preference_nll(logits, torch.ones_like(logits)).view(len(chosen), -1).mean(1)

    expected = one_by_one(heads, losses, UNITS, 0.1)
    assert_close(clipped(heads, losses, torch.arange(UNITS), mode, 0.1), expected)


def test_hooks_leave_a_frozen_base_in_evaluation_mode(tmp_path: Path) -> None:
    heads = lora_heads(tmp_path, dropout=0.1)
    heads.eval()
    modes = {name: module.training for name, module in heads.named_modules()}
    gradients = unit_gradients(heads, settings("hooks"))
    active = {name for name, module in heads.named_modules() if module.training}
    assert active
    assert all("lora_" in name or "score" in name for name in active)
    gradients.close()
    assert {name: module.training for name, module in heads.named_modules()} == modes


@pytest.mark.parametrize("mode", MODES)
def test_a_fresh_adapter_s_zero_gradient_is_no_missing_one(tmp_path: Path, mode: GradSample) -> None:
    """B starts at 0, and then A's gradient is 0 too; that is not an adapter that the network does not use."""
    heads = lora_heads(tmp_path)
    with torch.no_grad():
        for name, parameter in heads.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
    first, second = token_rows(2), token_rows(2, seed=4)

    def losses(chosen: Tensor) -> Tensor:
        return preference_nll(heads.logits(first[chosen], second[chosen])[0], torch.ones(len(chosen)))

    found = clipped(heads, losses, torch.arange(2), mode)
    names = [name for name, p in heads.named_parameters() if p.requires_grad]
    nonzero = {name for name, tensor in zip(names, found, strict=True) if bool(tensor.any())}
    assert any("lora_B" in name for name in nonzero)
    assert not any("lora_A" in name for name in nonzero)


@pytest.mark.parametrize("mode", MODES)
def test_an_adapter_without_part_in_the_losses_is_an_error(scorer: Scorer, mode: GradSample) -> None:
    """Mistake 26: noise would move it all the same, so that its own change shows nothing."""
    scorer.adapter = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match=r"no unit's loss depends on it: adapter\.weight, adapter\.bias"):
        clipped(scorer, of_pairs(scorer, pairs()), torch.arange(UNITS), mode)


class Scaled(Scorer):
    """A scorer with a parameter outside of all layers."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(2.0))


class Twice(nn.Module):
    """A layer whose weight is used a second time, past the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return (self.layer(x) @ self.layer.weight).sum(-1)


@pytest.mark.parametrize("mode", ["hooks", "functorch"])
@pytest.mark.parametrize(
    "case",
    [
        lambda: (Scaled(), lambda n, d: n.gain * pair_loss(n, d)),
        lambda: (Twice(), pair_loss),
        # Both responses in one batch: a row is half a pair, and its neighbour another pair's.
        lambda: (Scorer(), lambda n, d: -nn.functional.logsigmoid(n(d.transpose(0, 1).flatten(0, 1)).view(2, -1)[0])),
        lambda: (Scorer(), lambda n, d: n(d.sum((0, 1))[None]).expand(len(d))),
    ],
)
def test_hooks_refuse_what_they_get_wrong(
    mode: GradSample, case: Callable[[], tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor]]]
) -> None:
    torch.manual_seed(0)
    network, loss = case()
    data = pairs()
    with pytest.raises(UserError, match=rf"privacy\.local\.grad_sample={mode} .*; set loop"):
        clipped(network, lambda c: loss(network, data[c]), torch.arange(UNITS), mode, 1.0)


def test_the_loop_serves_what_hooks_refuse() -> None:
    torch.manual_seed(0)
    network, data = Twice(), pairs()
    losses = of_pairs(network, data)
    assert_close(
        clipped(network, losses, torch.arange(UNITS), "loop", 0.3), one_by_one(network, losses, UNITS, 0.3), 1e-12
    )


@pytest.mark.parametrize("mode", ["hooks", "functorch"])
def test_statistics_of_the_batch_are_refused(mode: GradSample) -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    with pytest.raises(UserError, match="BatchNorm1d"):
        unit_gradients(network, settings(mode))
    assert not hasattr(network, "autograd_grad_sample_hooks")


@pytest.mark.parametrize("mode", MODES)
def test_there_must_be_a_loss_for_each_unit(scorer: Scorer, mode: GradSample) -> None:
    data = pairs()
    with pytest.raises(ValueError, match="one a unit"):
        clipped(scorer, lambda c: pair_loss(scorer, data[c]).mean(), torch.arange(UNITS), mode)


@pytest.mark.parametrize("mode", MODES)
def test_the_network_is_left_as_it_was(scorer: Scorer, mode: GradSample) -> None:
    before = {name: set(vars(module)) for name, module in scorer.named_modules()}
    for _ in range(2):
        clipped(scorer, of_pairs(scorer, pairs()), torch.arange(UNITS), mode)
    assert {name: set(vars(module)) for name, module in scorer.named_modules()} == before
    for parameter in scorer.parameters():
        assert parameter.grad is None
        assert not hasattr(parameter, "grad_sample")
    pair_loss(scorer, pairs()).sum().backward()
    assert not any(hasattr(parameter, "grad_sample") for parameter in scorer.parameters())


def test_clipping_looks_at_all_tensors_together() -> None:
    gradients = [torch.tensor([[3.0], [0.3]]), torch.tensor([[4.0], [0.4]])]
    first, second = clip_units(gradients, 1.0)
    torch.testing.assert_close(first, torch.tensor([0.6 + 0.3], dtype=torch.float64), rtol=1e-7, atol=0)
    torch.testing.assert_close(second, torch.tensor([0.8 + 0.4], dtype=torch.float64), rtol=1e-7, atol=0)


def test_every_way_has_its_class() -> None:
    network = nn.Linear(2, 1)
    kinds = set()
    for mode in (*MODES, "ghost"):
        gradients = unit_gradients(network, dataclasses.replace(settings("loop"), grad_sample=mode))
        kinds.add((type(gradients).__name__, getattr(getattr(gradients, "_hooks", None), "force_functorch", None)))
        gradients.close()
    assert len(kinds) == 4


@pytest.mark.slow
def test_opacus_does_not_set_up_logging() -> None:
    code = (
        "import logging, torch\n"
        "from fedalign.privacy.local import DPSGD\n"
        "from fedalign.privacy.unit_gradients import unit_gradients\n"
        "unit_gradients(torch.nn.Linear(1, 1), DPSGD('example', 1.0, 0.5, 'hooks'))\n"
        "assert not logging.getLogger().handlers\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
