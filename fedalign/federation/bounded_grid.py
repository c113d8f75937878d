"""A bound on the size of a reply, whatever it answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from fedalign.federation.layered_grid import LayeredGrid
from fedalign.federation.records import TensorArray

_BYTES_PER_MB = 1e6


class BoundedGrid(LayeredGrid):
    """Passes messages on, and turns replies that are larger than allowed into errors before anybody reads them.

    Parameters
    ----------
    grid : Grid
    largest_mb : float
        Largest reply, in millions of bytes.
    """

    def __init__(self, grid: Grid, largest_mb: float) -> None:
        super().__init__(grid)
        self._largest_mb = largest_mb

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return replies, or an error in the place of one that is too large."""
        return map(self._bounded, super().pull_messages(message_ids))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Yield replies, or an error in the place of one that is too large."""
        return map(self._bounded, super().send_and_receive(messages, timeout=timeout))

    def _bounded(self, reply: Message) -> Message:
        if reply.has_error():
            return reply
        size = content_bytes(reply.content) / _BYTES_PER_MB
        if size <= self._largest_mb:
            return reply
        reason = (
            f"a reply of {size:.3g} MB is refused: federation.max_reply_mb={self._largest_mb:g}; raise it if the model "
            "is that large"
        )
        return Message(error=Error(ErrorCode.UNKNOWN, reason), metadata=reply.metadata)  # type: ignore[call-overload,no-any-return]


def content_bytes(content: RecordDict) -> int:
    """Return the size of what a message holds, without Flower's framing."""
    size = 0
    for arrays in content.array_records.values():
        for array in arrays.values():
            # To ask for the bytes of a tensor that did not travel would serialise it.
            size += array.tensor.nbytes if isinstance(array, TensorArray) else len(array.data)
    for metrics in content.metric_records.values():
        size += sum(8 * len(value) if isinstance(value, list) else 8 for value in metrics.values())
    for config in content.config_records.values():
        size += sum(len(value) if isinstance(value, (str, bytes, list)) else 8 for value in config.values())
    return size
