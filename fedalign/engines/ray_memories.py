"""What clients keep between messages, by reference: who holds it may die, and nothing is lost or applied twice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Handle = Any
"""Where an object lies; Ray's ObjectRef, or whatever else a pool uses."""


@dataclass(frozen=True)
class Changes:
    """What a call did to the records of one of its clients.

    Parameters
    ----------
    kept : tuple of str
        Keys of records that are new; they lie in one object together.
    dropped : tuple of str
        Keys of records that are gone.
    """

    kept: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.kept or self.dropped)


def client_of(key: str) -> str:
    """Return whose record a key of a node's state names: ``memory/<phase>/<client>`` or ``secure/<client>``."""
    return key.split("/", 2)[2] if key.startswith("memory/") else key.split("/", 1)[1]


class Memories:
    """Handles of every client's newest records.

    A worker gets the handles with a call and keeps nothing of its own. What it returns counts from the moment that its
    reply has come: a call that is lost has changed nothing, and can be made again.
    """

    def __init__(self) -> None:
        self._handles: dict[str, dict[str, Handle]] = {}

    def of(self, clients: Iterable[str]) -> tuple[list[Handle], list[tuple[str, ...]]]:
        """Return the objects that hold the clients' records, and the keys that are wanted of each."""
        handles, wanted = [], []
        for client in clients:
            by_object: dict[int, tuple[Handle, list[str]]] = {}
            for key, handle in self._handles.get(client, {}).items():
                by_object.setdefault(id(handle), (handle, []))[1].append(key)
            for handle, keys in by_object.values():
                handles.append(handle)
                wanted.append(tuple(keys))
        return handles, wanted

    def commit(self, clients: Sequence[str], changes: Sequence[Changes], handles: Sequence[Handle]) -> None:
        """Take over what a call changed; one object a client."""
        for client, change, handle in zip(clients, changes, handles, strict=True):
            if not change:
                continue
            own = self._handles.setdefault(client, {})
            for key in change.dropped:
                own.pop(key, None)
            own.update(dict.fromkeys(change.kept, handle))
            if not own:
                del self._handles[client]

    def forget(self, clients: Iterable[str]) -> None:
        """Drop all that some clients kept: it cannot be read any more."""
        for client in clients:
            self._handles.pop(client, None)

    def replace(self, handles: Mapping[str, Handle]) -> None:
        """Hold these records, by key, and no others."""
        self._handles = {}
        for key, handle in handles.items():
            self._handles.setdefault(client_of(key), {})[key] = handle

    def items(self) -> list[tuple[str, Handle]]:
        """Return every key with the object that holds its record."""
        return [pair for own in self._handles.values() for pair in own.items()]
