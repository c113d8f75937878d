"""A tensor in a Flower record: by reference within a process, a plain Flower array anywhere else."""

from __future__ import annotations

import pytest
import torch
from flwr.app import Array, ArrayRecord
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from fedalign.federation.records import TensorArray, decode_tensors, encode_tensors

TENSORS = {
    "weights": torch.linspace(-1, 1, 6).view(2, 3),
    "bits": torch.linspace(-1, 1, 5).bfloat16(),
    "counts": torch.arange(4),
}


def test_passes_by_reference_and_serialises_nothing(monkeypatch):
    def refuse(self):
        raise AssertionError("serialised")

    monkeypatch.setattr(TensorArray, "_plain", refuse)
    decoded = decode_tensors(encode_tensors(TENSORS))
    assert {name: tensor.data_ptr() for name, tensor in decoded.items()} == {
        name: tensor.data_ptr() for name, tensor in TENSORS.items()
    }


def test_survives_the_wire_between_superlink_and_supernode():
    """Flower takes a message apart into objects named by class and content, and puts them together elsewhere."""
    record = encode_tensors(TENSORS)
    objects = {number: item.deflate() for number, item in get_all_nested_objects(record).items()}
    received = inflate_object_from_contents(record.object_id, objects)
    assert isinstance(received, ArrayRecord)
    decoded = decode_tensors(received)
    assert decoded.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert decoded[name].dtype == tensor.dtype
        assert torch.equal(decoded[name], tensor)


@pytest.mark.parametrize("name", ["weights", "counts"])
def test_is_the_object_that_flower_itself_would_make(name):
    assert TensorArray(TENSORS[name]).object_id == Array(TENSORS[name].numpy()).object_id
