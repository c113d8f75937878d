"""Compressed tensors among the plain ones of a record: their parts under marked names, and their shapes as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from torch import Tensor

from fedalign.compression.packed import Packed, PackedContribution
from fedalign.contribution import Contribution, State
from fedalign.federation.untrusted import read_object

_VALUES, _SCALE, _INDICES = "packed.values:", "packed.scale:", "packed.indices:"
_PREFIXES = (_VALUES, _SCALE, _INDICES)
_MOST_DIMENSIONS = 16


def taken_apart(contribution: Contribution) -> tuple[State, str]:
    """Return what of a contribution travels, and the shapes of what travels compressed; empty where nothing does.

    Raises
    ------
    ValueError
        If a tensor's name is one that marks a part.
    """
    packed = contribution.packed if isinstance(contribution, PackedContribution) else {}
    tensors = {name: tensor for name, tensor in contribution.tensors.items() if name not in packed}
    for name in tensors:
        if name.startswith(_PREFIXES):
            raise ValueError(f"a tensor must not be called {name}: the prefix marks how parts travel")
    for name, each in packed.items():
        parts = {_VALUES: each.values, _SCALE: each.scale, _INDICES: each.indices}
        tensors |= {prefix + name: part for prefix, part in parts.items() if part is not None}
    return tensors, json.dumps({name: each.shape for name, each in packed.items()}) if packed else ""


def put_together(tensors: Mapping[str, Tensor], shapes: str) -> State:
    """Return the tensors that travelled, compressed ones as what they stand for.

    Raises
    ------
    ValueError
        If parts are missing, or do not fit together.
    """
    whole = {name: tensor for name, tensor in tensors.items() if not name.startswith(_PREFIXES)}
    for name, shape in (read_object(shapes, "the shapes of compressed tensors") if shapes else {}).items():
        if name in whole:
            raise ValueError(f"{name}: travels twice")
        values, scale, indices = (tensors.get(prefix + name) for prefix in _PREFIXES)
        if values is None or not _is_shape(shape):
            raise ValueError(f"{name[:80]}: not a compressed tensor")
        whole[name] = Packed(tuple(shape), values, scale, indices).unpack()
    return whole


def _is_shape(shape: object) -> bool:
    return (
        isinstance(shape, list)
        and len(shape) <= _MOST_DIMENSIONS
        and all(type(size) is int for size in shape)
        and abs(math.prod(shape)) < 2**62
    )


def contribution_bytes(contribution: Contribution) -> int:
    """Return the size of a contribution on the wire, without Flower's framing."""
    packed = contribution.packed if isinstance(contribution, PackedContribution) else {}
    plain = sum(t.numel() * t.element_size() for name, t in contribution.tensors.items() if name not in packed)
    return plain + sum(each.nbytes for each in packed.values()) + 8 * len(contribution.scalars)
