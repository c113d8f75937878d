"""A reply beyond the bound is an error reply, of whatever it is made, and one at the bound is not."""

from __future__ import annotations

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedalign.errors import RunFailed
from fedalign.federation.bounded_grid import BoundedGrid, content_bytes
from fedalign.federation.description import describe
from fedalign.federation.directory import discover
from fedalign.federation.records import encode_tensors

from .toy import Halfway, grid_of, node, opener

OPEN = opener([Halfway()])


def test_the_size_counts_every_kind_of_record() -> None:
    values = torch.zeros(1000, dtype=torch.float32)
    plain = Array(values.numpy())
    assert content_bytes(RecordDict({"a": encode_tensors({"w": values})})) == 4000
    assert content_bytes(RecordDict({"a": ArrayRecord({"w": plain})})) == len(plain.data) >= 4000
    assert content_bytes(RecordDict({"m": MetricRecord({"x": [0.0] * 10, "y": 1})})) == 88
    assert content_bytes(RecordDict({"c": ConfigRecord({"x": "a" * 50, "y": b"b" * 7, "z": 1})})) == 65


def test_a_reply_within_the_bound_passes() -> None:
    grid = BoundedGrid(grid_of(OPEN, node(1)), 1.0)
    (told,) = describe(grid, "{}", [1], 5.0)
    assert [client.name for client in told.clients] == ["ada", "bob", "cid", "dee", "uma"]


def test_a_larger_reply_is_refused_naming_the_setting() -> None:
    grid = BoundedGrid(grid_of(OPEN, node(1)), 1e-6)
    with pytest.raises(
        RunFailed, match=r"node 1 cannot start: a reply of .* MB is refused: federation.max_reply_mb=1e-06"
    ):
        discover(grid, "{}", 1, 5.0)
