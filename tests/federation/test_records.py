"""Tensors and contributions survive Flower's records: by reference, as protobuf, as pickle and as objects."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fedalign.contribution import Contribution
from fedalign.federation.records import (
    TensorArray,
    decode_contribution,
    decode_tensors,
    encode_contribution,
    encode_tensors,
    payload_bytes,
)

DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


def through_protobuf(content: RecordDict) -> RecordDict:
    wire = recorddict_to_proto(content).SerializeToString()
    proto = type(recorddict_to_proto(RecordDict())).FromString(wire)
    return recorddict_from_proto(proto)


def through_pickle(content: RecordDict) -> RecordDict:
    return pickle.loads(pickle.dumps(content))


def through_objects(content: RecordDict) -> RecordDict:
    """Take the records apart and put them together as a SuperLink and its nodes do."""
    wire = {name: part.deflate() for name, part in get_all_nested_objects(content).items()}
    inflated = inflate_object_from_contents(content.object_id, wire)
    assert isinstance(inflated, RecordDict)
    return inflated


Way = Callable[[RecordDict], RecordDict]
WAYS: dict[str, Way] = {
    "reference": lambda content: content,
    "protobuf": through_protobuf,
    "pickle": through_pickle,
    "objects": through_objects,
}
EVERY_WAY = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    shape = draw(npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
    values = torch.tensor(draw(npst.arrays(np.float64, shape, elements=st.floats(-100, 100))))
    tensor = values.to(draw(st.sampled_from(DTYPES)))
    return tensor.transpose(0, -1) if tensor.ndim > 1 and draw(st.booleans()) else tensor


SCALARS = st.dictionaries(st.text(max_size=5), st.floats(allow_nan=False), max_size=4)
CONTRIBUTIONS = st.builds(Contribution, st.dictionaries(st.text(max_size=5), tensors(), max_size=4), SCALARS)


def assert_same(one: Contribution, other: Contribution) -> None:
    assert other.scalars == one.scalars
    assert list(other.tensors) == list(one.tensors)
    for name, tensor in one.tensors.items():
        assert other.tensors[name].dtype == tensor.dtype
        assert other.tensors[name].shape == tensor.shape
        assert torch.equal(other.tensors[name], tensor)


@EVERY_WAY
@given(contribution=CONTRIBUTIONS)
def test_a_contribution_arrives_as_it_left(way: Way, contribution: Contribution) -> None:
    assert_same(contribution, decode_contribution(way(encode_contribution(contribution))))


@EVERY_WAY
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3)])
def test_every_kind_of_tensor_arrives(way: Way, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert_same(Contribution({"x": tensor}), decode_contribution(way(encode_contribution(Contribution({"x": tensor})))))


@EVERY_WAY
def test_every_bit_of_bfloat16_arrives(way: Way) -> None:
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    arrived = decode_contribution(way(encode_contribution(Contribution({"x": every})))).tensors["x"]
    assert arrived.dtype == torch.bfloat16
    assert torch.equal(arrived.view(torch.int16), every.view(torch.int16))


def test_scalars_that_are_no_finite_number_arrive() -> None:
    sent = Contribution(scalars={"a": float("inf"), "b": float("nan")})
    arrived = decode_contribution(through_protobuf(encode_contribution(sent))).scalars
    assert arrived["a"] == float("inf")
    assert arrived["b"] != arrived["b"]


def test_inside_a_process_nothing_is_copied_or_serialised() -> None:
    tensor = torch.ones(3)
    record = encode_tensors({"x": tensor})
    assert decode_tensors(record)["x"].data_ptr() == tensor.data_ptr()
    array = record["x"]
    assert isinstance(array, TensorArray)
    assert "_serialised" not in array.__dict__


def test_the_bytes_are_those_of_a_plain_flower_array() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    lazy, plain = TensorArray(torch.from_numpy(values)), Array(values)
    assert (lazy.dtype, lazy.shape, lazy.stype, lazy.data) == (plain.dtype, plain.shape, plain.stype, plain.data)
    assert np.array_equal(lazy.numpy(), values)
    assert lazy.object_id == plain.object_id


def test_across_processes_it_is_a_plain_flower_array() -> None:
    arrived = pickle.loads(pickle.dumps(TensorArray(torch.ones(2))))
    assert type(arrived) is Array


def test_what_arrives_may_be_written_to() -> None:
    sent = RecordDict({"r": encode_tensors({"x": torch.ones(2)})})
    arrived = decode_tensors(through_protobuf(sent).array_records["r"])
    arrived["x"].add_(1)
    assert arrived["x"].tolist() == [2.0, 2.0]


def test_gradients_stay_at_home() -> None:
    arrived = decode_tensors(encode_tensors({"x": torch.ones(2, requires_grad=True) * 2}))["x"]
    assert not arrived.requires_grad


GOOD = encode_contribution(Contribution({"x": torch.ones(1)}, {"weight": 1.0}))


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"tensors": ArrayRecord()}),
        RecordDict({**GOOD, "names": ConfigRecord({"scalars": "[]"})}),
        RecordDict({**GOOD, "names": ConfigRecord({"scalars": "5"})}),
        RecordDict({**GOOD, "scalars": MetricRecord({"values": 1.0})}),
    ],
)
def test_what_is_no_contribution_is_refused(content: RecordDict) -> None:
    with pytest.raises(ValueError, match=r"not a contribution|differ in number|not a JSON list"):
        decode_contribution(content)


def test_the_size_on_the_wire() -> None:
    state = {"a": torch.zeros(3, 2), "b": torch.zeros(5, dtype=torch.bfloat16), "c": torch.zeros(0)}
    assert payload_bytes(state) == 3 * 2 * 4 + 5 * 2
