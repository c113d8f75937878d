"""The default engine: a Flower grid inside this process, whose one node hosts every client."""

from __future__ import annotations

import itertools
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from flwr.app import Context, Error, Message, RecordDict
from flwr.app.metadata import Metadata
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import ServerApp
from pydantic import Field

from fedalign.engines.allocator import keep_freed_memory
from fedalign.engines.base import Engine
from fedalign.federation.client_app import make_client_app
from fedalign.federation.exchange import StreamingGrid
from fedalign.federation.site import OpenSite

if TYPE_CHECKING:
    from flwr.supercore.run import Run

_RUN_ID = 1
_SERVER_NODE, _CLIENT_NODE = 0, 1
_TTL_SECONDS = 43_200.0


class InProcessGrid(StreamingGrid):
    """Delivers each message by calling the ClientApp; nothing is serialised and nothing waits.

    Parameters
    ----------
    client_app : ClientApp
    contexts : mapping from node id to Context
        The nodes; their state lives as long as the grid.
    """

    def __init__(self, client_app: ClientApp, contexts: dict[int, Context]) -> None:
        self.client_app, self.contexts = client_app, contexts
        self._numbers = itertools.count(1)
        self._replies: dict[str, Message] = {}
        self._run: Run | None = None

    def set_run(self, run: Run) -> None:
        """Remember Flower's description of the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """Flower's description of the run."""
        if self._run is None:
            raise RuntimeError("no run has been set on this grid")
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a message to a node."""
        metadata = Metadata(
            run_id=_RUN_ID,
            message_id=f"in-process-{next(self._numbers)}",
            src_node_id=_SERVER_NODE,
            dst_node_id=dst_node_id,
            reply_to_message_id="",
            group_id=group_id,
            created_at=time.time(),
            ttl=_TTL_SECONDS if ttl is None else ttl,
            message_type=message_type,
        )
        return Message(content=content, metadata=metadata)  # type: ignore[call-overload,no-any-return]

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of the nodes."""
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Deliver messages and return their ids."""
        ids = []
        for message in messages:
            self._replies[message.metadata.message_id] = self._deliver(message)
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to messages; each is handed out once."""
        return [self._replies.pop(number) for number in message_ids if number in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Deliver messages one after another and yield the replies; ``timeout`` cannot pass here."""
        for message in messages:
            yield self._deliver(message)

    def _deliver(self, message: Message) -> Message:
        context = self.contexts[message.metadata.dst_node_id]
        try:
            return self.client_app(message, context)
        except Exception as error:
            reason = "".join(traceback.format_exception_only(error))
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)


@dataclass(frozen=True)
class InProcess(Engine):
    """Settings of the in-process engine.

    Parameters
    ----------
    name : str
    threads : int
        PyTorch threads.
    """

    name: str
    threads: Annotated[int, Field(ge=1)]

    def nodes(self, clients: int) -> int:
        """Return 1: one node hosts everybody and adds up on the spot."""
        return 1

    def run(self, server_app: ServerApp, open_site: OpenSite, clients: int, state_path: Path) -> None:
        """Call the server app with a grid of one node."""
        run_on_one_node(server_app, make_client_app(open_site, state_path))


def run_on_one_node(server_app: ServerApp, client_app: ClientApp) -> None:
    """Call the server app with a grid whose only node runs the client app."""
    keep_freed_memory()
    node = Context(_RUN_ID, _CLIENT_NODE, node_config={}, state=RecordDict(), run_config={})
    grid = InProcessGrid(client_app, {_CLIENT_NODE: node})
    server_app(grid, Context(_RUN_ID, _SERVER_NODE, node_config={}, state=RecordDict(), run_config={}))
