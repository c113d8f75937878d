"""A worker of the Ray engine: a process that has the data open and answers for some clients of a message at a time."""

from __future__ import annotations

import os
import socket
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, Message, RecordDict
from flwr.app.metadata import Metadata

from fedalign.engines.allocator import keep_freed_memory
from fedalign.engines.ray_memories import Changes, client_of
from fedalign.engines.ray_packing import Packed, pack, record_dict, unpack
from fedalign.federation.client_app import make_client_app
from fedalign.federation.messages import INSTRUCTION, Instruction
from fedalign.federation.secure.letters import LETTERS, Fields, write_letters
from fedalign.federation.site import OpenSite


@dataclass(frozen=True)
class Shared:
    """What all calls of one message have in common.

    Parameters
    ----------
    kind : str
        The message's type.
    order : Instruction
        Without its clients.
    content : Packed
        The message's other records, the state among them.
    """

    kind: str
    order: Instruction
    content: Packed


@dataclass(frozen=True)
class Header:
    """What the driver must know of a call at once; the reply itself waits until it is asked for.

    Parameters
    ----------
    changes : tuple of Changes
        By client, in the call's order.
    seconds : float
        That the call took.
    error : str or None
        What the ClientApp raised.
    """

    changes: tuple[Changes, ...]
    seconds: float
    error: str | None = None


@dataclass(frozen=True)
class Started:
    """Where a worker lives.

    Parameters
    ----------
    pid : int
    host : str
    log : str
        The file that its standard error goes to; empty where that is not known.
    """

    pid: int
    host: str
    log: str


class Worker:
    """Answers calls one after another; what clients keep comes with a call and leaves with its reply.

    Parameters
    ----------
    open_site : callable
    """

    def __init__(self, open_site: OpenSite) -> None:
        keep_freed_memory()
        self._open, self._app = open_site, make_client_app(open_site)
        self._read: tuple[int, RecordDict] = (0, RecordDict())

    def hello(self) -> Started:
        """Tell where this is."""
        link = Path("/proc/self/fd/2")
        log = str(link.readlink()) if link.exists() else ""
        return Started(os.getpid(), socket.gethostname(), log)

    def open(self, config: str) -> str | None:
        """Open the site, so that the first call finds it open; return what is wrong with it."""
        try:
            self._open(config, {})
        except Exception as error:
            return "".join(traceback.format_exception_only(error)).strip()
        return None

    def work(
        self,
        shared: Shared,
        number: int,
        clients: tuple[str, ...],
        letters: Mapping[str, Fields] | None,
        wanted: Sequence[tuple[str, ...]],
        *objects: Mapping[str, Any],
    ) -> tuple[Any, ...]:
        """Answer for some clients.

        Parameters
        ----------
        shared : Shared
        number : int
            Of ``shared``: its records are decoded once.
        clients : tuple of str
        letters : mapping from client to dict, or None
            What each is told alone.
        wanted : sequence of tuple of str
            Keys of the records that count in each of ``objects``.
        *objects : mapping from key to packed record

        Returns
        -------
        tuple
            A header, the packed reply, and for each client its changed records.
        """
        began = time.perf_counter()
        content = self._content(shared, number)
        content[INSTRUCTION] = replace(shared.order, clients=clients).to_record()
        if letters is not None:
            content[LETTERS] = write_letters(letters)
        packed = {key: records[key] for keys, records in zip(wanted, objects, strict=True) for key in keys}
        before = unpack(packed)
        context = Context(1, 1, node_config={}, state=RecordDict(), run_config={})
        for key, record in before.items():
            context.state[key] = record
        try:
            reply = self._app(Message(content=content, metadata=_metadata(shared.kind)), context)  # type: ignore[call-overload]
        except Exception as error:
            leave_broken_device()
            reason = "".join(traceback.format_exception_only(error))
            return (
                Header((Changes(),) * len(clients), time.perf_counter() - began, reason),
                None,
                *(None for _ in clients),
            )
        leave_broken_device()
        changes, records = _changes(clients, before, context.state)
        return Header(tuple(changes), time.perf_counter() - began), pack(reply.content), *records

    def _content(self, shared: Shared, number: int) -> RecordDict:
        if self._read[0] != number:
            self._read = (number, record_dict(shared.content))
        content = RecordDict()
        for name, record in self._read[1].items():
            content[name] = record
        return content


def leave_broken_device() -> None:
    """End the process if its GPU answers nothing any more: every client after this one would fail in it at once.

    Some errors of CUDA stay with a process for good. The pool starts another and sends the clients out again.
    """
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        sys.stderr.write(f"the GPU cannot be used any more: {error}\n")
        sys.stderr.flush()
        os._exit(1)


def _changes(
    clients: Sequence[str], before: Mapping[str, Any], after: Mapping[str, Any]
) -> tuple[list[Changes], list[Packed | None]]:
    """Compare what clients kept before and after a call; records are replaced, never changed in place."""
    new: dict[str, dict[str, Any]] = {client: {} for client in clients}
    gone: dict[str, list[str]] = {client: [] for client in clients}
    for key, record in after.items():
        if before.get(key) is not record:
            new[client_of(key)][key] = record
    for key in before:
        if key not in after:
            gone[client_of(key)].append(key)
    changes = [Changes(tuple(new[client]), tuple(gone[client])) for client in clients]
    return changes, [pack(new[client]) if new[client] else None for client in clients]


def _metadata(kind: str) -> Metadata:
    return Metadata(
        run_id=1,
        message_id="call",
        src_node_id=0,
        dst_node_id=1,
        reply_to_message_id="",
        group_id="",
        created_at=time.time(),
        ttl=43_200.0,
        message_type=kind,
    )
