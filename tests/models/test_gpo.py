"""The GPO network against PyTorch's own transformer, and what must and must not move a prediction."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fedalign.config import parse, resolve
from fedalign.errors import UserError
from fedalign.models.gpo import ContextAttention, GPOModel, GPONetwork

FEATURES = 5


@functools.cache
def published() -> GPOModel:
    """Return the shipped settings of the paper's network."""
    model = parse(resolve(["model=gpo"])).model
    assert isinstance(model, GPOModel)
    return model


def small(**changes: object) -> GPOModel:
    sizes = {"width": 12, "layers": 2, "heads": 3, "feedforward": 10, "embed_depth": 3, "input_scale": "raw"}
    return dataclasses.replace(published(), **{**sizes, **changes})


def network(settings: GPOModel, extra: int = 0, seed: int = 0) -> GPONetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return settings.build(FEATURES, extra).double()


def tokens(seed: int, context: int, targets: int, inputs: int = FEATURES + 1) -> Tensor:
    drawn = torch.randn(context + targets, inputs, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    drawn[context:, FEATURES] = 0
    return drawn


def reference(ours: GPONetwork, settings: GPOModel) -> Callable[[Tensor, int], Tensor]:
    """Return PyTorch's post-norm encoder with our weights; all points attend to the context alone."""
    layer = nn.TransformerEncoderLayer(
        settings.width, settings.heads, settings.feedforward, dropout=0.0, batch_first=True, norm_first=False
    )
    encoder = nn.TransformerEncoder(layer, settings.layers, enable_nested_tensor=False).double()
    for theirs, block in zip(encoder.layers, ours.blocks, strict=True):
        attention = theirs.self_attn
        pairs = [
            (attention.in_proj_weight, torch.cat([block.attention.query.weight, block.attention.key_value.weight])),
            (attention.in_proj_bias, torch.cat([block.attention.query.bias, block.attention.key_value.bias])),
        ]
        modules = [
            (attention.out_proj, block.attention.out),
            (theirs.linear1, block.up),
            (theirs.linear2, block.down),
            (theirs.norm1, block.norm1),
            (theirs.norm2, block.norm2),
        ]
        pairs += [(getattr(a, k), getattr(b, k)) for a, b in modules for k in ("weight", "bias")]
        with torch.no_grad():
            for target, source in pairs:
                target.copy_(source)

    def forward(points: Tensor, n_context: int) -> Tensor:
        hidden = torch.zeros(len(points), len(points), dtype=torch.bool)
        hidden[:, n_context:] = True
        encoded: Tensor = encoder(ours.embedder(points)[None], mask=hidden)[0]
        return ours.head(encoded[n_context:])

    return forward


@pytest.mark.parametrize(("context", "targets"), [(1, 1), (4, 7), (9, 2)])
def test_it_is_pytorch_s_encoder_under_a_mask(context: int, targets: int) -> None:
    settings = small()
    ours = network(settings)
    points = tokens(1, context, targets)
    mean, log_std = ours(points, context)
    expected = reference(ours, settings)(points, context)
    torch.testing.assert_close(torch.stack([mean, log_std], 1), expected, rtol=1e-9, atol=1e-9)


def test_gradients_are_those_of_pytorch_s_encoder() -> None:
    settings = small()
    ours = network(settings)
    points = tokens(2, 4, 3)
    expected = torch.autograd.grad(
        reference(ours, settings)(points, 4).square().sum(), list(ours.embedder.parameters())
    )
    got = torch.autograd.grad(torch.stack(ours(points, 4)).square().sum(), list(ours.embedder.parameters()))
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("features", "count"), [(4096, 1_188_354), (384, 713_218), (768, 762_370)])
def test_the_published_network_has_the_published_size(features: int, count: int) -> None:
    assert sum(parameter.numel() for parameter in published().build(features, 0).parameters()) == count


def test_extra_inputs_widen_the_first_layer_only() -> None:
    plain, wider = small().build(FEATURES, 0), small().build(FEATURES, 2)
    shapes = [{name: tuple(p.shape) for name, p in built.named_parameters()} for built in (plain, wider)]
    differing = {name for name in shapes[0] if shapes[0][name] != shapes[1][name]}
    assert differing == {"embedder.0.weight"}
    assert shapes[1]["embedder.0.weight"] == (12, FEATURES + 3)


@given(seed=st.integers(0, 999), context=st.integers(1, 9))
def test_the_order_of_the_context_does_not_matter(seed: int, context: int) -> None:
    ours, points = network(small(), seed=seed), tokens(seed, context, 4)
    order = torch.randperm(context, generator=torch.Generator().manual_seed(seed + 1))
    shuffled = torch.cat([points[:context][order], points[context:]])
    torch.testing.assert_close(ours(shuffled, context), ours(points, context), rtol=1e-9, atol=1e-9)


@given(seed=st.integers(0, 999), targets=st.integers(2, 8))
def test_a_target_does_not_see_the_others(seed: int, targets: int) -> None:
    ours, points = network(small(), seed=seed), tokens(seed, 3, targets)
    together = torch.stack(ours(points, 3))
    alone = [torch.stack(ours(torch.cat([points[:3], points[3 + k : 4 + k]]), 3)) for k in range(targets)]
    torch.testing.assert_close(together, torch.cat(alone, 1), rtol=1e-9, atol=1e-9)


def test_a_target_sees_the_context_and_itself() -> None:
    ours, points = network(small()), tokens(3, 3, 1).requires_grad_()
    ours(points, 3)[0].sum().backward()
    assert points.grad is not None
    assert bool((points.grad.abs().sum(1) > 1e-9).all())


def test_scaled_features_are_those_of_unit_root_mean_square() -> None:
    plain, scaled = network(small(), extra=2), network(small(input_scale="features"), extra=2)
    points = tokens(4, 3, 4, FEATURES + 3)
    root = points[:, :FEATURES].square().mean(1, keepdim=True).sqrt()
    by_hand = torch.cat([points[:, :FEATURES] / root, points[:, FEATURES:]], 1)
    torch.testing.assert_close(scaled(points, 3), plain(by_hand, 3), rtol=1e-6, atol=1e-6)
    longer = torch.cat([7 * points[:, :FEATURES], points[:, FEATURES:]], 1)
    torch.testing.assert_close(scaled(longer, 3), scaled(points, 3), rtol=1e-6, atol=1e-6)


def test_projections_start_as_pytorch_s_attention_does() -> None:
    torch.manual_seed(0)
    attention = ContextAttention(64, 4)
    stacked = torch.cat([attention.query.weight, attention.key_value.weight]).detach()
    bound = math.sqrt(6 / (3 * 64 + 64))
    assert float(stacked.abs().max()) <= bound
    assert float(stacked.std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert all(not bool(linear.bias.any()) for linear in (attention.query, attention.key_value, attention.out))


def test_attention_is_a_softmax_over_the_context() -> None:
    """Multi-head attention written out with loops."""
    torch.manual_seed(1)
    attention = ContextAttention(6, 2).double()
    x = torch.randn(5, 6, dtype=torch.float64)
    query, key_value = attention.query(x), attention.key_value(x[:3])
    rows = []
    for i in range(5):
        heads = []
        for h in range(2):
            own = slice(3 * h, 3 * h + 3)
            scores = torch.stack([query[i, own] @ key_value[j, :6][own] / math.sqrt(3) for j in range(3)])
            weights = F.softmax(scores, 0)
            heads.append(sum(weights[j] * key_value[j, 6:][own] for j in range(3)))
        rows.append(torch.cat(heads))
    torch.testing.assert_close(attention(x, 3), attention.out(torch.stack(rows)))


def test_heads_must_share_the_width() -> None:
    with pytest.raises(UserError, match=r"model\.heads=5 does not divide model.width=12"):
        small(heads=5)
