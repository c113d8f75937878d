"""How many clients of a node train side by side: as many as asked for, or as it turns out to be fastest."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from fedalign.methods.base import Phase

Choice = Literal["auto", "stack", "loop"]

_TRIALS = 2
_FIRST_STACK = 8
_START_UP = 0.2
"""Seconds."""
_MOST_BROKEN = 3


@dataclass
class Trial:
    """Which way of training a phase's clients is the faster one.

    Parameters
    ----------
    verdict : bool or None
        Whether to stack; None while that is not known.
    asked : bool
        Whether the verdict is the user's, and stays.
    """

    verdict: bool | None = None
    asked: bool = False
    _loop: list[float] = field(default_factory=list)
    _stack: list[float] = field(default_factory=list)
    _broken: int = 0

    def size(self, waiting: int, cohort: int) -> int:
        """Return how many of the ``waiting`` clients come next: as it was decided, or whose turn it is to be tried."""
        most = min(waiting, cohort)
        if self.verdict is not None:
            return most if self.verdict else 1
        if len(self._loop) < _TRIALS:
            return 1
        won = bool(self._stack) and self._stack[-1] < min(self._loop)
        return most if won else min(most, _FIRST_STACK)

    def note(self, clients: int, seconds: float) -> None:
        """Learn what ``clients`` clients took, and decide once that suffices.

        The first stack is a small one, in case that stacks are slow. It may lose some time by starting up; if it lost
        more, no other is tried, else the second one tells, which is small as well where the first has lost.
        """
        if clients > 1:
            self._broken = 0
        if self.verdict is not None:
            return
        (self._stack if clients > 1 else self._loop).append(seconds / clients)
        if len(self._loop) < _TRIALS or not self._stack:
            return
        lost = self._stack[-1] - min(self._loop)
        if len(self._stack) >= _TRIALS:
            self.verdict = lost < 0
        elif clients > 1 and lost * clients > _START_UP:
            self.verdict = False

    def broke(self) -> bool:
        """Learn that a stack could not be trained; return whether that was so often in a row that no other is tried."""
        self._broken += 1
        if self._broken >= _MOST_BROKEN and not self.asked:
            self.verdict = False
        return self.verdict is False


class Batching:
    """Decides, order by order, how many clients are trained as one stack.

    Nothing is trained twice to find out: the first clients of a phase are trained one by one, those after them as a
    stack, and all of them count. Both ways agree to rounding.

    Parameters
    ----------
    cohort : int
        Clients in a stack, at most.
    choose : {"auto", "stack", "loop"}
        Whichever was faster on the first clients of a phase; or one of them wherever it is possible.
    largest : int
        Trained numbers a client above which ``auto`` tries no stack.
    clock : callable
        Returns seconds.
    """

    def __init__(
        self, cohort: int, choose: Choice, largest: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.clock = clock
        self._cohort, self._choose, self._largest = cohort, choose, largest
        self._trials: dict[tuple[str, int, str], Trial] = {}

    def of(self, phase: Phase[Any], device: str) -> PhaseBatching | None:
        """Return how a phase whose state is on ``device`` is trained; None where it is one by one in any case."""
        numbers = phase.stacked_size()
        if not numbers or self._choose == "loop" or (self._choose == "auto" and numbers > self._largest):
            return None
        trial = Trial(verdict=True, asked=True) if self._choose == "stack" else Trial()
        return PhaseBatching(self._cohort, self._trials.setdefault((phase.name, numbers, device), trial), self.clock)


@dataclass(frozen=True)
class PhaseBatching:
    """How the clients of one phase are trained.

    Parameters
    ----------
    cohort : int
        Clients in a stack, at most.
    trial : Trial
        What was seen so far.
    clock : callable
        Returns seconds.
    """

    cohort: int
    trial: Trial
    clock: Callable[[], float]

    def size(self, waiting: int) -> int:
        """Return how many of the ``waiting`` clients are to be trained together next; 1 is one by one."""
        return self.trial.size(waiting, self.cohort)

    def note(self, clients: int, seconds: float) -> None:
        """Learn from what the training of ``clients`` clients together took."""
        self.trial.note(clients, seconds)

    def broke(self) -> bool:
        """Learn that a stack could not be trained; return whether there will be no other in this phase."""
        return self.trial.broke()
