"""How a message to many clients is cut into pieces, one call of a worker each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from flwr.app import Message

from fedalign.federation.secure.letters import Fields


@dataclass(frozen=True)
class Share:
    """What all pieces of a message have in common, put where every worker can read it.

    Parameters
    ----------
    number : int
        Of the share; a worker keeps what it has read of the newest.
    handle : object
        Where it lies.
    """

    number: int
    handle: Any


@dataclass(frozen=True)
class Answer:
    """What became of a piece.

    Parameters
    ----------
    reply : object or None
        Handle of the reply; None where there is none.
    error : str or None
        What the ClientApp raised.
    dropped : str or None
        Why no worker lived to answer.
    """

    reply: Any = None
    error: str | None = None
    dropped: str | None = None


@dataclass
class Piece:
    """Some clients of a message, in its order.

    Parameters
    ----------
    message : Message
    share : Share
    clients : tuple of str
    letters : mapping from client to dict, or None
        What each is told alone.
    deaths : int
        Workers that died of it.
    retries : int
        How often it was sent again.
    answer : Answer or None
    """

    message: Message
    share: Share
    clients: tuple[str, ...]
    letters: Mapping[str, Fields] | None = None
    deaths: int = 0
    retries: int = 0
    answer: Answer | None = None

    def singles(self) -> list[Piece]:
        """Return one piece a client, so that one that kills its worker takes nobody with it."""
        alone = [replace(self, clients=(client,), letters=only(self.letters, (client,))) for client in self.clients]
        for other in alone[1:]:
            other.retries = 0
        return alone


@dataclass
class Slot:
    """A place in the fixed order of the replies: one piece, or what it was split into.

    Parameters
    ----------
    pieces : list of Piece
    """

    pieces: list[Piece] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every piece is answered."""
        return all(piece.answer is not None for piece in self.pieces)


def only(letters: Mapping[str, Fields] | None, clients: Sequence[str]) -> Mapping[str, Fields] | None:
    """Return the letters to some clients, where there are letters."""
    return None if letters is None else {client: letters[client] for client in clients}


def cut(clients: Sequence[str], workers: int, largest: int) -> list[tuple[str, ...]]:
    """Cut a cohort into runs of clients: long ones first, short ones at the end, so that workers finish together.

    A run is at most ``largest`` clients and at most two thirds of a worker's share of those who are left. It is at
    least an eighth of a worker's share of the cohort (no more than 4 are asked for): each run costs some milliseconds
    of all, for its reply is read, checked and added up. A single worker has nobody to finish with, and gets runs of
    equal length. They depend on nothing but the cohort and the settings, and so the sums do not depend on which worker
    was free when ("guided self-scheduling", Polychronopoulos and Kuck 1987, with fixed runs).

    Parameters
    ----------
    clients : sequence of str
    workers, largest : int
        At least 1.
    """
    least = min(4, -(-len(clients) // (8 * workers)))
    runs, at = [], 0
    while at < len(clients):
        left = len(clients) - at
        share = -(-left // -(-left // largest)) if workers == 1 else -(-2 * left // (3 * workers))
        size = min(largest, max(least, share))
        runs.append(tuple(clients[at : at + size]))
        at += size
    return runs
