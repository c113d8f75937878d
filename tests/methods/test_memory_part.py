"""A part of a memory is a memory of its own."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from fedalign.methods.base import Memory
from fedalign.methods.memory_part import MemoryPart

NAMES = st.text("abc/", min_size=1, max_size=4)


@given(first=st.dictionaries(NAMES, st.integers(0, 9)), second=st.dictionaries(NAMES, st.integers(0, 9)))
def test_parts_do_not_see_each_other(first: dict[str, int], second: dict[str, int]) -> None:
    memory: Memory = {"kept": torch.tensor(1)}
    parts = MemoryPart(memory, "type 0/"), MemoryPart(memory, "type 1/")
    for part, values in zip(parts, (first, second), strict=True):
        for name, value in values.items():
            part[name] = torch.tensor(value)
    for part, values in zip(parts, (first, second), strict=True):
        assert {name: int(value) for name, value in part.items()} == values
        assert len(part) == len(values)
    assert len(memory) == 1 + len(first) + len(second)
    for name in first:
        del parts[0][name]
    assert len(parts[0]) == 0
    assert len(memory) == 1 + len(second)
