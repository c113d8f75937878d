"""Records on their way between processes: equal on arrival, and never in memory that must not be written to."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedalign.engines.ray_packing import pack, record_dict, unpack
from fedalign.federation.records import decode_tensors, encode_tensors

TENSORS = {
    "weights": torch.linspace(-1, 1, 6).view(2, 3),
    "turned": torch.arange(6.0).view(2, 3).t(),
    "bits": torch.linspace(-1, 1, 5).bfloat16(),
    "count": torch.tensor(7),
    "none": torch.zeros(0, 3),
}


def test_records_of_every_kind_arrive_as_they_were() -> None:
    config = {"text": "ä", "bytes": b"\0\xff", "number": 3, "list": [1.5, 2.5], "flag": True}
    content = RecordDict(
        {"s": encode_tensors(TENSORS), "c": ConfigRecord(config), "m": MetricRecord({"v": [1.0, 2.0]})}
    )
    arrived = record_dict(pickle.loads(pickle.dumps(pack(content))))
    assert list(arrived) == ["s", "c", "m"]
    assert dict(arrived.config_records["c"]) == config
    assert arrived.metric_records["m"] == content.metric_records["m"]
    decoded = decode_tensors(arrived.array_records["s"])
    assert decoded.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert decoded[name].dtype == tensor.dtype
        assert torch.equal(decoded[name], tensor)


def test_flowers_own_arrays_travel_too() -> None:
    vector = np.arange(4, dtype=np.uint64)
    (record,) = unpack(pack({"masked": ArrayRecord({"ada": Array(vector)})})).values()
    assert isinstance(record, ArrayRecord)
    assert record["ada"].numpy().dtype == np.uint64
    assert np.array_equal(record["ada"].numpy(), vector)


@pytest.mark.parametrize("writable", [True, False])
def test_read_only_memory_is_copied_and_other_is_not(writable: bool) -> None:
    values = np.arange(3.0)
    values.flags.writeable = writable
    (record,) = unpack({"s": ("arrays", {"w": values})}).values()
    assert isinstance(record, ArrayRecord)
    decode_tensors(record)["w"].add_(1)
    assert values.tolist() == ([1.0, 2.0, 3.0] if writable else [0.0, 1.0, 2.0])
