"""Flower's records as plain dictionaries of NumPy arrays, which Ray carries between processes without copying them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedalign.federation.records import TensorArray

Packed = dict[str, tuple[str, dict[str, Any]]]
"""From a record's name to its kind and its fields; the fields of an array record are NumPy arrays."""

Record = ArrayRecord | ConfigRecord | MetricRecord

_ARRAYS, _CONFIG, _METRICS = "arrays", "config", "metrics"


def pack(records: Mapping[str, Record]) -> Packed:
    """Return records as dictionaries; arrays are handed over by reference."""
    return {name: _pack(record) for name, record in records.items()}


def unpack(packed: Packed) -> dict[str, Record]:
    """Return the records again; arrays that live in Ray's read-only memory are copied out of it."""
    return {name: _unpack(kind, fields) for name, (kind, fields) in packed.items()}


def record_dict(packed: Packed) -> RecordDict:
    """Return packed records as a message's content."""
    content = RecordDict()
    for name, record in unpack(packed).items():
        content[name] = record
    return content


def _pack(record: Record) -> tuple[str, dict[str, Any]]:
    if isinstance(record, ArrayRecord):
        return _ARRAYS, {name: _values(array) for name, array in record.items()}
    return (_CONFIG if isinstance(record, ConfigRecord) else _METRICS), dict(record)


def _unpack(kind: str, fields: dict[str, Any]) -> Record:
    if kind == _ARRAYS:
        record = ArrayRecord()
        for name, values in fields.items():
            record[name] = TensorArray(_tensor(values))
        return record
    return ConfigRecord(fields) if kind == _CONFIG else MetricRecord(fields)


def _values(array: Any) -> np.ndarray[Any, Any]:
    if isinstance(array, TensorArray):
        return cast("np.ndarray[Any, Any]", array.tensor.detach().cpu().numpy())
    return cast("np.ndarray[Any, Any]", array.numpy())


def _tensor(values: np.ndarray[Any, Any]) -> torch.Tensor:
    # Who receives a tensor may change it in place, which in the object store's read-only pages would be a crash.
    return torch.from_numpy(values if values.flags.writeable else values.copy())
