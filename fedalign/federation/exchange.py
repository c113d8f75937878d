"""Messages out and replies in, one by one as they come, so that the server never holds all replies of a round."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterable, Iterator

from flwr.app import Message
from flwr.serverapp import Grid

_FIRST_WAIT, _LONGEST_WAIT = 0.02, 0.5
"""Seconds between two looks for replies: a tenth of what has passed, within these bounds."""


class StreamingGrid(Grid):
    """A grid that hands replies on as they come: what `send_and_receive` returns may be read once, and late."""

    @abstractmethod
    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Deliver messages and yield the replies; those to messages that were not answered in time are missing."""


def exchange(grid: Grid, messages: Iterable[Message], timeout: float | None) -> Iterator[Message]:
    """Deliver messages and yield the replies.

    Flower's own grids hold every reply until the last one is there; of these, replies are asked for as they come.

    Parameters
    ----------
    grid : Grid
    messages : iterable of Message
    timeout : float or None
        Seconds to wait for all replies together; None waits for ever.
    """
    if isinstance(grid, StreamingGrid):
        yield from grid.send_and_receive(messages, timeout=timeout)
        return
    began = time.monotonic()
    # A message that could not be sent has no id.
    waiting = {number for number in grid.push_messages(list(messages)) if number}
    while waiting:
        replies = list(grid.pull_messages(waiting))
        waiting -= {reply.metadata.reply_to_message_id for reply in replies}
        replies.reverse()
        while replies:
            yield replies.pop()
        passed = time.monotonic() - began
        if timeout is not None and passed > timeout:
            return
        if waiting:
            time.sleep(min(_LONGEST_WAIT, max(_FIRST_WAIT, passed / 10)))
