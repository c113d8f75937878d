"""Compression: exact sizes, bounded and unbiased errors, nothing lost over rounds, and a bound that holds."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedalign.compression.base import NoCompression
from fedalign.compression.layers import Layers
from fedalign.compression.number_formats import Cast, Int8
from fedalign.compression.packed import PackedContribution
from fedalign.compression.sparsify import TopK
from fedalign.contribution import Contribution, State
from fedalign.errors import UserError
from fedalign.federation.packed_records import contribution_bytes

LAYERS = {
    "bf16": Layers(None, Cast("bfloat16"), True),
    "fp16": Layers(None, Cast("float16"), True),
    "int8": Layers(None, Int8("stochastic"), True),
    "int8 nearest": Layers(None, Int8("nearest"), True),
    "topk": Layers(TopK(0.2), None, True),
    "topk int8": Layers(TopK(0.2), Int8("stochastic"), True),
    "topk fp16": Layers(TopK(0.2), Cast("float16"), True),
}
EVERY_KIND = pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS.keys())


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def compressed(layers: Layers, tensors: State, residual: State | None = None, bound: float = 0.0, seed: int = 0):
    told = Contribution(tensors, {"weight": 3.0})
    return layers.compress(told, residual or {}, torch.Generator().manual_seed(seed), bound)


@pytest.mark.parametrize(
    ("layers", "bytes_of_1000"),
    [
        (LAYERS["bf16"], 2000),
        (LAYERS["fp16"], 2000),
        (LAYERS["int8"], 1000 + 4),
        (LAYERS["topk"], 200 * (4 + 4)),
        (LAYERS["topk int8"], 200 * (4 + 1) + 4),
        (LAYERS["topk fp16"], 200 * (4 + 2)),
        (Layers(TopK(0.0015), None, False), 2 * (4 + 4)),
    ],
)
def test_sizes_are_exact(layers: Layers, bytes_of_1000: int) -> None:
    assert layers.tensor_bytes(1000) == bytes_of_1000
    sent, _ = compressed(layers, {"delta/w": drawn(0, 20, 50), "count": drawn(1, 5)})
    assert isinstance(sent, PackedContribution)
    assert sent.packed["delta/w"].nbytes == bytes_of_1000
    assert contribution_bytes(sent) == bytes_of_1000 + 5 * 4 + 8


@EVERY_KIND
@pytest.mark.parametrize("numbers", [0, 1, 2, 7])
def test_small_tensors_have_the_size_that_was_foretold(layers: Layers, numbers: int) -> None:
    sent, _ = compressed(layers, {"delta/w": drawn(0, numbers)})
    assert sent.packed["delta/w"].nbytes == layers.tensor_bytes(numbers)
    assert sent.tensors["delta/w"].shape == (numbers,)


def test_8_bits_miss_by_half_a_step_at_most_and_by_a_step_where_chance_rounds() -> None:
    values = drawn(2, 500)
    step = float(values.abs().max()) / 127
    for name, most in (("int8 nearest", 0.5), ("int8", 1.0)):
        sent, _ = compressed(LAYERS[name], {"delta/w": values})
        errors = (sent.tensors["delta/w"] - values).abs()
        assert float(errors.max()) <= step * (most + 1e-4)
        assert float(errors.max()) > step * most / 2


def test_rounding_by_chance_is_right_on_average() -> None:
    values = torch.tensor([1.0, 0.3, -0.0021, 0.00001, -0.77])
    step, draws = 1 / 127, 4000
    many = values.repeat(draws)
    sent, _ = compressed(LAYERS["int8"], {"delta/w": many})
    means = sent.tensors["delta/w"].reshape(draws, -1).double().mean(0)
    # Of a coin between two neighbours, a step apart, the mean over all draws has this standard deviation at most.
    assert float((means - values).abs().max()) < 4 * step / 2 / math.sqrt(draws)
    nearest, _ = compressed(LAYERS["int8 nearest"], {"delta/w": many})
    assert float((nearest.tensors["delta/w"].reshape(draws, -1)[0] - values).abs().max()) > 0.001


def test_casts_are_those_of_torch_but_for_what_is_out_of_range() -> None:
    values = torch.tensor([1.001, -3.3e-5, 1e9, -1e9])
    half, _ = compressed(LAYERS["fp16"], {"delta/w": values})
    torch.testing.assert_close(half.tensors["delta/w"], torch.tensor([1.0009765625, -3.3e-5, 65504.0, -65504.0]))
    brain, _ = compressed(LAYERS["bf16"], {"delta/w": values})
    assert torch.equal(brain.tensors["delta/w"], values.bfloat16().float())


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40), st.floats(0.01, 0.99))
def test_the_largest_entries_are_kept_as_they_are(values: list[float], share: float) -> None:
    tensor, topk = torch.tensor(values), TopK(share)
    sent, _ = compressed(Layers(topk, None, False), {"delta/w": tensor})
    got = sent.tensors["delta/w"]
    kept = sent.packed["delta/w"].indices.long()
    assert len(kept) == math.ceil(round(share * len(values), 9))
    assert torch.equal(got[kept], tensor[kept])
    left = torch.ones(len(values), dtype=torch.bool)
    left[kept] = False
    assert not got[left].any()
    if left.any():
        assert tensor[left].abs().max() <= tensor[kept].abs().min()


@EVERY_KIND
def test_over_rounds_nothing_is_lost_but_the_last_residual(layers: Layers) -> None:
    residual: State = {}
    sent_so_far, meant_so_far = torch.zeros(60, dtype=torch.float64), torch.zeros(60, dtype=torch.float64)
    for number in range(12):
        told = drawn(number, 60)
        sent, residual = compressed(layers, {"delta/w": told}, residual, seed=number)
        sent_so_far += sent.tensors["delta/w"]
        meant_so_far += told
    torch.testing.assert_close(sent_so_far + residual["delta/w"], meant_so_far, atol=1e-5, rtol=0)
    assert float(residual["delta/w"].abs().max()) > 0


def test_without_feedback_nothing_is_kept_back() -> None:
    sent, kept = compressed(Layers(TopK(0.2), None, False), {"delta/w": drawn(0, 10)})
    assert kept == {}
    assert int((sent.tensors["delta/w"] != 0).sum()) == 2


@EVERY_KIND
@given(data=st.data())
def test_a_bound_holds_whatever_is_made_up_for(layers: Layers, data: st.DataObject) -> None:
    seed, bound = data.draw(st.integers(0, 10**6)), data.draw(st.floats(1e-3, 1e3))
    told = Contribution({"delta/w": drawn(seed, 4, 5), "delta/b": drawn(seed + 1, 3), "count": drawn(seed + 2, 2)})
    residual = {"delta/w": drawn(seed + 3, 4, 5) * bound, "delta/b": drawn(seed + 4, 3)}
    clipped = told.clip(bound)
    sent, kept = layers.compress(clipped, residual, torch.Generator().manual_seed(seed), bound)
    # What float32 adds to a norm on its way.
    assert sent.norm() <= bound * (1 + 1e-6)
    meant = {name: clipped.tensors[name] + residual[name] for name in residual}
    for name, packed in sent.packed.items():
        assert (packed.unpack().abs() <= (sent.tensors[name] + kept[name]).abs() * (1 + 1e-6) + 1e-30).all()
    length = math.sqrt(sum(float(t.square().sum()) for t in [*meant.values(), clipped.tensors["count"]]))
    shrunk = min(1.0, bound / length)
    for name in residual:
        torch.testing.assert_close(sent.tensors[name] + kept[name], meant[name] * shrunk, rtol=1e-4, atol=1e-6 * bound)


def test_only_deltas_are_compressed() -> None:
    tensors = {"delta/w": drawn(0, 30), "histogram": drawn(1, 30), "delta/steps": torch.arange(4)}
    sent, kept = compressed(LAYERS["topk int8"], tensors)
    assert set(sent.packed) == set(kept) == {"delta/w"}
    assert torch.equal(sent.tensors["histogram"], tensors["histogram"])
    assert torch.equal(sent.tensors["delta/steps"], tensors["delta/steps"])
    assert sent.scalars == {"weight": 3.0}


@EVERY_KIND
@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_what_is_not_finite_is_refused_before_it_is_hidden(layers: Layers, broken: float) -> None:
    with pytest.raises(ValueError, match="delta/w: holds NaN or Inf"):
        compressed(layers, {"delta/w": torch.tensor([1.0, broken])})


@EVERY_KIND
def test_zeros_stay_zeros(layers: Layers) -> None:
    sent, kept = compressed(layers, {"delta/w": torch.zeros(9)}, bound=1.0)
    assert not sent.tensors["delta/w"].any()
    assert not kept["delta/w"].any()


def test_smallest_numbers_do_not_break_a_scale() -> None:
    sent, kept = compressed(LAYERS["int8"], {"delta/w": torch.tensor([1e-45, -1e-45])})
    assert torch.isfinite(sent.tensors["delta/w"]).all()
    assert torch.equal(sent.tensors["delta/w"] + kept["delta/w"], torch.tensor([1e-45, -1e-45]))


def test_layers_that_do_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="compression=none"):
        Layers(None, None, True)


def test_none_passes_the_very_contribution_on() -> None:
    told = Contribution({"delta/w": drawn(0, 3)})
    sent, kept = NoCompression().compress(told, {}, torch.Generator(), 0.0)
    assert sent is told
    assert kept == {}
    assert NoCompression().tensor_bytes(3) is None
