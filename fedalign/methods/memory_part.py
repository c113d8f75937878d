"""A part of a client's memory, for one of several things of a kind that keep what they need under the same names."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping

from torch import Tensor

from fedalign.methods.base import Memory


class MemoryPart(MutableMapping[str, Tensor]):
    """What stands in a memory under a prefix, as a memory of its own.

    Parameters
    ----------
    memory : mutable mapping from str to Tensor
    prefix : str
    """

    def __init__(self, memory: Memory, prefix: str) -> None:
        self._memory, self._prefix = memory, prefix

    def __getitem__(self, name: str) -> Tensor:
        return self._memory[self._prefix + name]

    def __setitem__(self, name: str, value: Tensor) -> None:
        self._memory[self._prefix + name] = value

    def __delitem__(self, name: str) -> None:
        del self._memory[self._prefix + name]

    def __iter__(self) -> Iterator[str]:
        return (name.removeprefix(self._prefix) for name in self._memory if name.startswith(self._prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)
