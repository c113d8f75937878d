"""Compressed contributions over the wire: the same numbers on both sides, and nothing taken on trust."""

from __future__ import annotations

import json

import pytest
import torch
from flwr.app import Array, ConfigRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from hypothesis import given
from hypothesis import strategies as st

from fedalign.compression.layers import Layers
from fedalign.compression.number_formats import Cast, Int8
from fedalign.compression.packed import Packed
from fedalign.compression.sparsify import TopK
from fedalign.contribution import Contribution
from fedalign.federation.packed_records import contribution_bytes, put_together, taken_apart
from fedalign.federation.records import decode_contribution, encode_contribution

LAYERS = [
    Layers(None, Cast("bfloat16"), True),
    Layers(None, Cast("float16"), True),
    Layers(None, Int8("stochastic"), True),
    Layers(TopK(0.3), None, True),
    Layers(TopK(0.3), Int8("nearest"), True),
]


def over_the_wire(content: RecordDict) -> RecordDict:
    """Return the records as the other side of a connection has them."""
    return recorddict_from_proto(recorddict_to_proto(content))


@pytest.mark.parametrize("layers", LAYERS)
@given(shape=st.lists(st.integers(1, 5), max_size=3), seed=st.integers(0, 1000))
def test_both_sides_have_the_same_numbers(layers: Layers, shape: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = {"delta/w": torch.randn(shape, generator=generator), "count": torch.arange(3.0)}
    sent, _ = layers.compress(Contribution(tensors, {"weight": 2.0}), {}, generator, 0.0)
    got = decode_contribution(over_the_wire(encode_contribution(sent)))
    assert got.scalars == sent.scalars
    assert got.tensors.keys() == sent.tensors.keys()
    assert all(torch.equal(got.tensors[name], sent.tensors[name]) for name in sent.tensors)


def test_what_travels_is_small() -> None:
    layers = Layers(TopK(0.1), Int8("stochastic"), True)
    plain = Contribution({"delta/w": torch.randn(100, 100)}, {"weight": 1.0})
    sent, _ = layers.compress(plain, {}, torch.Generator(), 0.0)
    lengths = [len(recorddict_to_proto(encode_contribution(each)).SerializeToString()) for each in (plain, sent)]
    framing = lengths[0] - contribution_bytes(plain)
    assert contribution_bytes(sent) == 1000 * 5 + 4 + 8
    assert lengths[1] < contribution_bytes(sent) + 3 * framing + 300


def test_a_plain_contribution_has_the_records_that_it_always_had() -> None:
    content = encode_contribution(Contribution({"delta/w": torch.ones(2)}, {"weight": 1.0}))
    assert set(content.config_records["names"]) == {"scalars"}
    assert list(content.array_records["tensors"]) == ["delta/w"]


def int8(places: list[int] | None, values: int, shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    parts = {"packed.values:delta/w": torch.ones(values, dtype=torch.int8), "packed.scale:delta/w": torch.tensor(0.5)}
    if places is not None:
        parts["packed.indices:delta/w"] = torch.tensor(places, dtype=torch.int32)
    return parts


@pytest.mark.parametrize(
    ("places", "values", "shape", "message"),
    [
        (None, 3, (2, 2), "3 compressed values for a tensor of shape"),
        ([0, 4], 2, (2, 2), "lie outside"),
        ([-1, 2], 2, (2, 2), "lie outside"),
        ([1, 1], 2, (2, 2), "not ascending"),
        ([2, 1], 2, (2, 2), "not ascending"),
        ([1], 2, (2, 2), "1 places"),
        ([0, 1], 2, (10**6, 10**6), "too few"),
        (None, 2, (-1, -2), "shape"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    places: list[int] | None, values: int, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        put_together(int8(places, values, shape), json.dumps({"delta/w": shape}))


def test_missing_parts_and_doubled_names_are_refused() -> None:
    good = int8(None, 4, (2, 2))
    shapes = json.dumps({"delta/w": [2, 2]})
    assert put_together(good, shapes)["delta/w"].tolist() == [[0.5, 0.5], [0.5, 0.5]]
    with pytest.raises(ValueError, match="travels twice"):
        put_together({**good, "delta/w": torch.ones(2, 2)}, shapes)
    with pytest.raises(ValueError, match="a scale does not go with"):
        put_together({"packed.values:delta/w": good["packed.values:delta/w"]}, shapes)
    with pytest.raises(ValueError, match="not a compressed tensor"):
        put_together({}, shapes)
    with pytest.raises(ValueError, match="not a compressed tensor"):
        put_together(good, json.dumps({"delta/w": ["2", 2]}))
    with pytest.raises(ValueError, match="compressed values of type"):
        Packed((2,), torch.ones(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="must not be called"):
        taken_apart(Contribution({"packed.values:x": torch.ones(1)}))


@pytest.mark.parametrize("shapes", ["nonsense", "[1]", '{"delta/w": 3}'])
def test_a_reply_whose_shapes_are_no_shapes_is_refused(shapes: str) -> None:
    content = encode_contribution(Contribution({"delta/w": torch.ones(2)}))
    content["names"] = ConfigRecord({"scalars": "[]", "shapes": shapes})
    with pytest.raises(ValueError):
        decode_contribution(content)


def test_arrays_of_the_wire_are_flower_s_own() -> None:
    sent, _ = LAYERS[4].compress(Contribution({"delta/w": torch.randn(20)}), {}, torch.Generator(), 0.0)
    arrays = over_the_wire(encode_contribution(sent)).array_records["tensors"]
    assert {type(each) for each in arrays.values()} == {Array}
    assert {each.dtype for each in arrays.values()} == {"int8", "int32", "float32"}
