"""Arrays, JSON, numbers and texts that others wrote: what is meant is read, and all else is a ValueError."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedalign.federation.untrusted import (
    one_line,
    read_amount,
    read_array,
    read_count,
    read_list,
    read_names,
    read_object,
    read_tensor,
)

from .malice import BYTES, forged

DTYPES = st.sampled_from(["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "u8", "?"]).map(np.dtype)


@given(arrays.arrays(DTYPES, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)), st.booleans())
def test_an_array_is_read_as_it_was_written(values: np.ndarray[Any, Any], fortran: bool) -> None:
    sent = Array(np.asfortranarray(values) if fortran else values)
    found = read_array(sent)
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values)
    np.testing.assert_array_equal(found, sent.numpy())
    found[...] = 0  # it is nobody else's


def test_a_tensor_is_read_as_it_was_written() -> None:
    tensor = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    assert torch.equal(read_tensor(Array(tensor)), tensor)


@pytest.mark.parametrize("content", BYTES[:16], ids=range(16))
def test_what_is_no_array_of_numbers_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="an array"):
        read_tensor(Array("float64", (2,), "numpy.ndarray", content))


def test_no_memory_is_reserved_on_a_header_s_word() -> None:
    sent = Array("float64", (10**9,), "numpy.ndarray", forged((10**9,)))
    tracemalloc.start()
    with pytest.raises(ValueError, match="an array of shape"):
        read_array(sent)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown format 'pickle'"):
        read_array(Array("float64", (2,), "pickle", b""))


@pytest.mark.parametrize("text", [None, 3, "", "{", "null", "3", "[" * 100_000, '{"a":' * 100_000, "9" * 10_000])
def test_json_that_is_no_object_or_list_is_refused(text: object) -> None:
    for read in (read_object, read_list):
        with pytest.raises(ValueError, match="it is not"):
            read(text, "it")


@pytest.mark.parametrize(
    ("read", "good", "bad"),
    [
        (read_count, [0, 7, 2**62], [-1, 1.5, True, None, "3", 2**63, [1]]),
        (read_amount, [0, 0.5, 1e299], [-0.1, float("nan"), float("inf"), True, None, "3", 10**400]),
        (read_names, [[], ["a", ""]], [None, "ab", [1], [["a"]], {"a": 1}]),
    ],
)
def test_fields_are_what_they_should_be(read: Callable[..., Any], good: list[Any], bad: list[Any]) -> None:
    for value in good:
        found = read({"field": value}, "field")
        assert found == (tuple(value) if isinstance(value, list) else value)
    for value in bad:
        with pytest.raises(ValueError, match="field is not"):
            read({"field": value}, "field")
    with pytest.raises(ValueError, match="field is not"):
        read({}, "field")


@given(st.text(max_size=2000))
def test_a_reason_is_one_short_printable_line(text: str) -> None:
    line = one_line(text)
    assert line.isprintable()
    assert len(line) <= 303
    assert one_line("a\x1b[31m red\nline") == "a [31m red line"
