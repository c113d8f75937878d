"""Keeps every message of in-process runs as the bytes that would travel, so that they can be searched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import ServerApp

from fedalign.engines.in_process import InProcess, InProcessGrid
from fedalign.federation.client_app import make_client_app


@dataclass(frozen=True)
class Sent:
    """One message.

    Parameters
    ----------
    kind : str
    reply : bool
    content : bytes
        Names and values of all records, arrays as they are serialised.
    tokens : tuple of int
        The values of its integer arrays one after another, which might be those of a text.
    """

    kind: str
    reply: bool
    content: bytes
    tokens: tuple[int, ...]


@dataclass
class Wire:
    """What went over the wire, in order."""

    sent: list[Sent] = field(default_factory=list)

    def take(self, message: Message, reply: bool) -> None:
        """Keep a message."""
        if message.has_error():
            self.sent.append(Sent(message.metadata.message_type, reply, message.error.reason.encode(), ()))
            return
        pieces = list(_pieces(message.content))
        tokens = tuple(token for array in _integers(message.content) for token in array)
        self.sent.append(Sent(message.metadata.message_type, reply, b"\0".join(pieces), tokens))

    def holding(self, text: str, replies_only: bool = False) -> set[str]:
        """Return the kinds of the messages that hold a text, as it is or as JSON writes it."""
        forms = {text.encode(), json.dumps(text)[1:-1].encode(), text.encode("utf-16-le")}
        return {
            f"{sent.kind} {'reply' if sent.reply else 'order'}"
            for sent in self.sent
            if (sent.reply or not replies_only) and any(form in sent.content for form in forms)
        }


def _pieces(content: RecordDict) -> Iterator[bytes]:
    for name, record in content.items():
        yield name.encode()
        for key, value in record.items():
            yield str(key).encode()
            yield value.data if hasattr(value, "data") else value if isinstance(value, bytes) else str(value).encode()


def _integers(content: RecordDict) -> Iterator[list[int]]:
    for record in content.array_records.values():
        for array in record.values():
            values = array.numpy()
            if np.issubdtype(values.dtype, np.integer):
                yield [int(value) for value in values.reshape(-1)]


def tapped(monkeypatch: pytest.MonkeyPatch) -> Wire:
    """Let the in-process engine host each client on a node of its own, and return what goes to and from them."""
    wire = Wire()
    deliver = InProcessGrid._deliver

    def listen(grid: InProcessGrid, message: Message) -> Message:
        wire.take(message, reply=False)
        reply = deliver(grid, message)
        wire.take(reply, reply=True)
        return reply

    def many_nodes(engine: InProcess, server: ServerApp, open_site: object, clients: int, path: object) -> None:
        contexts = {
            1000 + place: Context(1, 1000 + place, {"partition-id": place}, RecordDict(), {})
            for place in range(clients)
        }
        server(InProcessGrid(make_client_app(open_site, path), contexts), Context(1, 0, {}, RecordDict(), {}))  # type: ignore[arg-type]

    monkeypatch.setattr(InProcessGrid, "_deliver", listen)
    monkeypatch.setattr(InProcess, "run", many_nodes)
    monkeypatch.setattr(InProcess, "nodes", lambda engine, clients: clients)
    return wire
