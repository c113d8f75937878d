"""One exchange with the workers: who works on what next, what is sent again, and replies in a fixed order."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from fedalign.engines.ray_memories import Handle, Memories
from fedalign.engines.ray_pieces import Answer, Piece, Slot
from fedalign.engines.ray_worker import Header

_log = logging.getLogger(__name__)

_AHEAD = 8
"""Answers that may wait in shared memory to be taken while workers go on; then they wait too."""


@dataclass(frozen=True)
class Answered:
    """A call's reply is there.

    Parameters
    ----------
    call : int
    header : Header
    reply : object
        Handle of the packed reply.
    records : sequence of object
        Handles of what each client keeps.
    """

    call: int
    header: Header
    reply: Handle
    records: Sequence[Handle]


@dataclass(frozen=True)
class Died:
    """A worker is gone, and another is on its way.

    Parameters
    ----------
    reason : str
    running : int or None
        The call that it was at.
    waiting : tuple of int
        Calls that it had not begun.
    """

    reason: str
    running: int | None
    waiting: tuple[int, ...]


@dataclass(frozen=True)
class Lost:
    """A call cannot be made, because what its clients kept was on a machine that is gone.

    Parameters
    ----------
    call : int
    reason : str
    """

    call: int
    reason: str


Event = Answered | Died | Lost


class Pool(Protocol):
    """Workers that take calls."""

    def free(self) -> int | None:
        """Return the worker that has least to do; None where all have enough."""

    def send(
        self,
        worker: int,
        piece: Piece,
        handles: Sequence[Handle],
        wanted: Sequence[tuple[str, ...]],
    ) -> int:
        """Give a worker a piece and return the call's number."""

    def wait(self, timeout: float | None) -> list[Event]:
        """Return what has happened; empty when ``timeout`` seconds have passed."""

    def abandon(self) -> None:
        """Forget calls that are not answered, and the workers that are at them."""


class Exchange:
    """Sends pieces to workers as these become free, and hands their answers on in the order of the slots.

    Parameters
    ----------
    pool : Pool
    memories : Memories
    slots : sequence of Slot
    retries : int
        How often a piece is sent again after its worker died; the last time client by client.
    timeout : float or None
        Seconds from now.
    """

    def __init__(
        self, pool: Pool, memories: Memories, slots: Sequence[Slot], retries: int, timeout: float | None
    ) -> None:
        self._pool, self._memories, self._slots, self._retries = pool, memories, slots, retries
        self._ends = None if timeout is None else time.monotonic() + timeout
        self._queue = deque((slot, piece) for slot in slots for piece in slot.pieces)
        self._sent: dict[int, tuple[Slot, Piece]] = {}
        self._untaken = 0

    def answered(self) -> Iterator[Piece]:
        """Yield pieces with their answers; those that have none in time are left out."""
        in_time = True
        try:
            for slot in self._slots:
                while in_time and not slot.complete:
                    in_time = self._step()
                pieces, slot.pieces = slot.pieces, []
                for piece in pieces:
                    if piece.answer is not None:
                        # Whoever takes it is busy with it for a while, and workers should not wait for that.
                        if in_time:
                            self._keep_busy()
                        self._untaken -= 1
                        yield piece
        finally:
            if self._sent:
                self._pool.abandon()

    def _step(self) -> bool:
        """Hand out work and wait for something to happen; False when time is up."""
        self._hand_out()
        left = None if self._ends is None else self._ends - time.monotonic()
        if left is not None and left <= 0:
            return False
        for event in self._pool.wait(left):
            self._take(event)
        return True

    def _keep_busy(self) -> None:
        """Take in what has happened, without waiting, and hand out work to whom it made free."""
        if self._queue and self._untaken <= _AHEAD:
            for event in self._pool.wait(0.0) if self._sent else ():
                self._take(event)
            self._hand_out()

    def _hand_out(self) -> None:
        while self._queue and (worker := self._pool.free()) is not None:
            slot, piece = self._queue.popleft()
            handles, wanted = self._memories.of(piece.clients)
            self._sent[self._pool.send(worker, piece, handles, wanted)] = slot, piece

    def _answer(self, piece: Piece, answer: Answer) -> None:
        piece.answer = answer
        self._untaken += 1

    def _take(self, event: Event) -> None:
        if isinstance(event, Died):
            for call in reversed(event.waiting):
                self._queue.appendleft(self._sent.pop(call))
            if event.running is not None:
                self._again(*self._sent.pop(event.running), event.reason)
            return
        _, piece = self._sent.pop(event.call)
        if isinstance(event, Lost):
            self._memories.forget(piece.clients)
            self._answer(piece, Answer(dropped=event.reason))
            return
        self._memories.commit(piece.clients, event.header.changes, event.records)
        self._answer(piece, Answer(event.reply, event.header.error))

    def _again(self, slot: Slot, piece: Piece, reason: str) -> None:
        """Send a piece again whose worker died at it, or give its clients up."""
        piece.deaths += 1
        what = f"{len(piece.clients)} clients from {piece.clients[0]}" if len(piece.clients) > 1 else piece.clients[0]
        if piece.deaths > self._retries:
            _log.warning("a worker died at %s: %s; they are dropped from this exchange", what, reason)
            self._answer(piece, Answer(dropped=f"its worker died {piece.deaths} times: {reason}"))
            return
        _log.warning("a worker died at %s: %s; they are sent to another", what, reason)
        alone = piece.deaths == self._retries and len(piece.clients) > 1
        pieces = piece.singles() if alone else [piece]
        at = slot.pieces.index(piece)
        slot.pieces[at : at + 1] = pieces
        for again in reversed(pieces):
            again.retries += 1
            self._queue.appendleft((slot, again))
