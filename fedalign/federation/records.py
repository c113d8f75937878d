"""States and contributions to and from Flower's records; bytes are made only when somebody asks for them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from fedalign.contribution import Contribution, StackedContribution, State
from fedalign.federation.packed_records import contribution_bytes, put_together, taken_apart
from fedalign.federation.untrusted import read_list, read_tensor

# Flower's arrays are numpy arrays, which know no bfloat16: its bits travel as int16 under a marked name.
_BFLOAT16 = "bfloat16:"

_TENSORS, _SCALARS, _NAMES, _SHAPES = "tensors", "scalars", "names", "shapes"


class TensorArray(Array):
    """A Flower array that keeps its tensor and serialises it only when its bytes are read.

    Inside one process a state or a contribution then passes by reference. Neither who gives nor who receives a
    tensor this way may change it in place while the other still uses it.
    """

    stype = "numpy.ndarray"

    def __init__(self, tensor: Tensor) -> None:
        self.__dict__["_tensor"] = tensor

    @property
    def dtype(self) -> str:  # type: ignore[override]
        """Name of the dtype, as NumPy writes it."""
        return str(self.tensor.dtype).removeprefix("torch.")

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Shape of the tensor."""
        return tuple(self.tensor.shape)

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """The serialised bytes."""
        return self._plain().data

    @property
    def tensor(self) -> Tensor:
        """The tensor itself; not a copy."""
        tensor: Tensor = self.__dict__["_tensor"]
        return tensor

    def _plain(self) -> Array:
        plain = self.__dict__.get("_serialised")
        if plain is None:
            plain = Array(self.tensor.detach().cpu().numpy())
            self.__dict__["_serialised"] = plain
        return plain

    def deflate(self) -> bytes:
        """Return the object that goes over the wire: a plain Flower array, since a node knows no other class."""
        return self._plain().deflate()

    def __reduce__(self) -> tuple[Any, ...]:
        """Cross process borders as a plain Flower array."""
        plain = self._plain()
        return Array, (plain.dtype, plain.shape, plain.stype, plain.data)


def encode_tensors(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Return an array record that holds ``tensors``, bfloat16 included."""
    # Filled one by one: ArrayRecord(dict) would read, and so serialise, every array.
    record = ArrayRecord()
    for name, tensor in tensors.items():
        if name.startswith(_BFLOAT16):
            raise ValueError(f"a tensor must not be called {name}: the prefix marks how bits travel")
        if tensor.dtype == torch.bfloat16:
            record[_BFLOAT16 + name] = TensorArray(tensor.detach().contiguous().view(torch.int16))
        else:
            record[name] = TensorArray(tensor.detach())
    return record


def decode_tensors(record: ArrayRecord) -> State:
    """Return the named tensors of an array record; not to be changed in place.

    Raises
    ------
    ValueError
        If one cannot be read, or a name stands for two.
    """
    state: State = {}
    for key, array in record.items():
        tensor = array.tensor if isinstance(array, TensorArray) else read_tensor(array)
        name = key.removeprefix(_BFLOAT16)
        if name in state:
            raise ValueError(f"two tensors are called {name}")
        if name != key and tensor.dtype != torch.int16:
            raise ValueError(f"{name}: {tensor.dtype} where the bits of bfloat16 belong")
        state[name] = tensor if name == key else tensor.view(torch.bfloat16)
    return state


def encode_contribution(contribution: Contribution) -> RecordDict:
    """Return the records that carry a contribution.

    Scalar names travel once, as one JSON list, beside one list of values: a metric per group would
    otherwise cost a protobuf entry each.
    """
    names = list(contribution.scalars)
    values = [float(contribution.scalars[name]) for name in names]
    tensors, shapes = taken_apart(contribution)
    return RecordDict(
        {
            _TENSORS: encode_tensors(tensors),
            _SCALARS: MetricRecord({"values": values}),
            _NAMES: ConfigRecord({"scalars": json.dumps(names), **({_SHAPES: shapes} if shapes else {})}),
        }
    )


def decode_contribution(content: RecordDict) -> Contribution:
    """Return the contribution that a reply carries.

    Raises
    ------
    ValueError
        If the records do not hold a contribution.
    """
    try:
        about = content.config_records[_NAMES]
        arrays = content.array_records[_TENSORS]
        values = content.metric_records[_SCALARS]["values"]
        told = about["scalars"]
    except KeyError as error:
        raise ValueError(f"the reply is not a contribution: it has no {error}") from None
    names = read_list(told, "the list of scalars")
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise ValueError("scalars are not named by different texts")
    if not isinstance(values, list) or len(values) != len(names):
        raise ValueError("names and values of scalars differ in number")
    tensors = put_together(decode_tensors(arrays), str(about.get(_SHAPES, "")))
    try:
        return Contribution(tensors, dict(zip(names, map(float, values), strict=True)))
    except OverflowError:
        raise ValueError("a scalar is too large") from None


def payload_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Return the size of tensors on the wire, without Flower's framing."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def stacked_bytes(stacked: StackedContribution, places: Sequence[int]) -> int:
    """Return the size of some clients' contributions of a stack together, as if each had sent its own."""
    shared = payload_bytes(stacked.tensors) // max(1, len(stacked))
    return sum(shared + contribution_bytes(stacked.own[place]) for place in places)
