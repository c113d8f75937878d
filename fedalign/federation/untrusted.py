"""Reading what others sent, which may be anything: arrays, JSON, names and numbers, refused by a ValueError."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import Array
from numpy.lib import format as npy

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_KINDS = "biuf"

LONGEST_REASON = 300
"""Characters of what a node says went wrong that are kept."""


def read_array(array: Array) -> np.ndarray[Any, Any]:
    """Return the values of a Flower array, which may be written to.

    Flower reads with ``numpy.load``, which takes a header's word for how much memory is needed, and knows other formats
    than the one that is meant. Here the header is held against the bytes before anything is reserved.

    Raises
    ------
    ValueError
        If the bytes are not those of one array of booleans or real numbers.
    """
    if array.stype != "numpy.ndarray" or not isinstance(array.data, bytes):
        raise ValueError(f"an array in the unknown format {array.stype!r}")
    stream = io.BytesIO(array.data)
    try:
        shape, fortran, dtype = _HEADERS[npy.read_magic(stream)](stream)
    except (ValueError, KeyError, SyntaxError, TypeError, EOFError, RecursionError, MemoryError) as error:
        raise ValueError(f"an array that cannot be read: {type(error).__name__}") from None
    if dtype.kind not in _KINDS or not dtype.isnative or dtype.itemsize > 8:
        raise ValueError(f"an array of {str(dtype)[:40]}")
    count = math.prod(shape)
    if any(length < 0 for length in shape) or len(array.data) - stream.tell() != count * dtype.itemsize:
        raise ValueError(f"an array of shape {str(shape)[:60]} in {len(array.data)} bytes")
    if not count:
        return np.empty(shape, dtype)
    flat = np.frombuffer(array.data, dtype, count, stream.tell()).copy()
    return flat.reshape(shape, order="F" if fortran else "C")


def read_tensor(array: Array) -> torch.Tensor:
    """Return the values of a Flower array as a tensor of its own.

    Raises
    ------
    ValueError
        If they cannot be read (:func:`read_array`), or PyTorch has no such type.
    """
    values = read_array(array)
    try:
        return torch.from_numpy(values)
    except TypeError:
        raise ValueError(f"an array of {values.dtype}") from None


def read_object(text: object, what: str) -> dict[str, Any]:
    """Return the JSON object that a text holds.

    Raises
    ------
    ValueError
        If it is no text, no JSON, nested too deeply, or another value than an object.
    """
    value = _read_json(text, what)
    if not isinstance(value, dict):
        raise ValueError(f"{what} is not a JSON object")
    return value


def read_list(text: object, what: str) -> list[Any]:
    """Return the JSON list that a text holds.

    Raises
    ------
    ValueError
        If it is no text, no JSON, nested too deeply, or another value than a list.
    """
    value = _read_json(text, what)
    if not isinstance(value, list):
        raise ValueError(f"{what} is not a JSON list")
    return value


def _read_json(text: object, what: str) -> Any:
    try:
        return json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is not JSON: {type(error).__name__}") from None


def read_count(fields: Mapping[str, Any], key: str) -> int:
    """Return a whole number of at least 0.

    Raises
    ------
    ValueError
        If it is missing or something else.
    """
    value = fields.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise ValueError(f"{key} is not a whole number of at least 0")
    return value


def read_amount(fields: Mapping[str, Any], key: str) -> float:
    """Return a finite number of at least 0.

    Raises
    ------
    ValueError
        If it is missing or something else.
    """
    value = fields.get(key)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < 1e300:
        raise ValueError(f"{key} is not a finite number of at least 0")
    return float(value)


def read_names(fields: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Return a list of texts.

    Raises
    ------
    ValueError
        If it is missing or something else.
    """
    value = fields.get(key)
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"{key} is not a list of names")
    return tuple(value)


def one_line(text: object, longest: int = LONGEST_REASON) -> str:
    """Return a text that somebody else wrote as one line of printable characters, cut where it is too long.

    Such a text comes into logs and terminals, which act on control characters.
    """
    clean = "".join(c if c.isprintable() else " " for c in str(text)[: 4 * longest])
    line = " ".join(clean.split())
    return line if len(line) <= longest else f"{line[:longest]}..."
