"""A Flower grid of one node whose clients are served by workers: messages go out in pieces, replies come in order."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from fedalign.engines.in_process import InProcessGrid
from fedalign.engines.ray_exchange import Exchange, Pool
from fedalign.engines.ray_memories import Handle, Memories, client_of
from fedalign.engines.ray_packing import pack, record_dict, unpack
from fedalign.engines.ray_pieces import Answer, Piece, Share, Slot, cut, only
from fedalign.engines.ray_worker import Shared
from fedalign.federation.messages import DESCRIBE, INSTRUCTION, REPORT, RESTORE, SAVE, Instruction, NodeReport
from fedalign.federation.secure.letters import (
    LETTERS,
    MASKED,
    read_letters,
    write_letters,
    write_vectors,
)

_HERE = (DESCRIBE, SAVE, RESTORE)
"""What the driver answers itself: it has the site open, and the handles of what clients keep."""


class SharedPool(Pool, Protocol):
    """A pool with a place where the driver and all workers read and write."""

    def start(self, config: str) -> None:
        """Let every worker open the site of a run."""

    def put(self, value: Any) -> Handle:
        """Put a value where every worker can read it."""

    def get(self, handle: Handle) -> Any:
        """Read a value; a LookupError where it is gone."""


class RayGrid(InProcessGrid):
    """Cuts messages into pieces, which workers answer, each with the sum of its clients.

    Parameters
    ----------
    client_app : ClientApp
        Answers here what needs no worker.
    context : Context
        Of the one node.
    pool : SharedPool
    workers, clients_per_call, retries : int
        As in the settings of the engine.
    """

    def __init__(
        self,
        client_app: ClientApp,
        context: Context,
        pool: SharedPool,
        workers: int,
        clients_per_call: int,
        retries: int,
    ) -> None:
        super().__init__(client_app, {context.node_id: context})
        self._context, self._pool = context, pool
        self._workers, self._largest, self._retries = workers, clients_per_call, retries
        self._memories = Memories()
        self._shares = itertools.count(1)
        self._pushed: dict[str, list[Message]] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Deliver messages and return their ids."""
        ids = []
        for message in messages:
            self._pushed[message.metadata.message_id] = list(self.send_and_receive([message]))
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to messages, one or more to each; each is handed out once."""
        return [reply for number in message_ids for reply in self._pushed.pop(number, [])]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Yield replies, one a piece, in the order of messages and clients; who is not in time is left out.

        Raises
        ------
        RunFailed
            If no worker can be started, or one cannot open the data.
        """
        given = list(messages)
        if not given:
            return
        self._pool.start(Instruction.of(given[0].content).config)
        if given[0].metadata.message_type in _HERE:
            yield from (self._here(message) for message in given)
            return
        yield from self._exchange(given, timeout)

    def _exchange(self, messages: Sequence[Message], timeout: float | None) -> Iterator[Message]:
        shares: dict[Any, Share] = {}
        slots = [Slot([piece]) for message in messages for piece in self._cut(message, shares)]
        for piece in Exchange(self._pool, self._memories, slots, self._retries, timeout).answered():
            assert piece.answer is not None
            yield self._reply(piece, piece.answer)

    def _cut(self, message: Message, shares: dict[Any, Share]) -> list[Piece]:
        """Return a message's pieces; messages that differ in their clients alone share what they share."""
        content, kind = message.content, message.metadata.message_type
        order = Instruction.of(content)
        common = replace(order, clients=())
        key = (kind, common, *(id(content[name]) for name in content if name not in (INSTRUCTION, LETTERS)))
        if key not in shares:
            rest = pack({name: content[name] for name in content if name not in (INSTRUCTION, LETTERS)})
            shares[key] = Share(next(self._shares), self._pool.put(Shared(kind, common, rest)))
        letters = read_letters(content) if LETTERS in content.config_records else None
        runs = cut(order.clients, self._workers, self._largest)
        return [Piece(message, shares[key], run, only(letters, run)) for run in runs]

    def _reply(self, piece: Piece, answer: Answer) -> Message:
        if answer.error is not None:
            error = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, answer.error)
            return Message(error, reply_to=piece.message)
        if answer.dropped is not None:
            return Message(_dropped(piece, answer.dropped), reply_to=piece.message)
        try:
            content = record_dict(self._pool.get(answer.reply))
        except LookupError as error:
            return Message(_dropped(piece, f"its reply is lost: {error}"), reply_to=piece.message)
        if piece.retries:
            content[REPORT] = replace(NodeReport.of(content), retries=piece.retries).to_record()
        return Message(content, reply_to=piece.message)

    def _here(self, message: Message) -> Message:
        """Answer what is about the node as a whole, with what its clients keep in the node's state while it lasts."""
        kind, state = message.metadata.message_type, self._context.state
        if kind == SAVE:
            self._gather()
        try:
            reply = self._deliver(message)
            if kind == RESTORE:
                self._memories.replace({key: self._pool.put(pack({key: record})) for key, record in state.items()})
        finally:
            for key in list(state):
                del state[key]
        return reply

    def _gather(self) -> None:
        """Put what clients keep into the node's state; where it is lost they begin anew, as in their next round."""
        for key, handle in self._memories.items():
            try:
                record = self._pool.get(handle)[key]
            except LookupError:
                self._memories.forget([client_of(key)])
                continue
            self._context.state[key] = unpack({key: record})[key]


def _dropped(piece: Piece, reason: str) -> RecordDict:
    """Return the reply of clients that no worker survived: nothing, and why."""
    failures = tuple((client, reason) for client in piece.clients)
    content = RecordDict({REPORT: NodeReport((), 0.0, 0, failures, piece.retries).to_record()})
    if piece.letters is not None:
        content[LETTERS], content[MASKED] = write_letters({}), write_vectors({})
    return content
