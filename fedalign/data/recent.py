"""What was made last, up to a number: shards that are made when asked for, and not all of a population's kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

Made = TypeVar("Made")

KEPT_SHARDS = 512
"""Of so many clients a process keeps the shards; those of a larger federation are made anew when they are asked for."""


class Recent(Generic[Made]):
    """Makes a thing when it is first asked for, and keeps those that were asked for last.

    Parameters
    ----------
    capacity : int
        How many are kept.
    """

    def __init__(self, capacity: int = KEPT_SHARDS) -> None:
        self._capacity = capacity
        self._kept: OrderedDict[str, Made] = OrderedDict()

    def get(self, name: str, make: Callable[[], Made]) -> Made:
        """Return the thing of that name."""
        if name in self._kept:
            self._kept.move_to_end(name)
            return self._kept[name]
        self._kept[name] = made = make()
        if len(self._kept) > self._capacity:
            self._kept.popitem(last=False)
        return made

    def __len__(self) -> int:
        """Return how many are kept."""
        return len(self._kept)
