"""A pool of workers without Ray: they are real, live in this process, and die and dawdle when a test says so."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable, Sequence
from typing import Any

from flwr.app import Context, RecordDict

from fedalign.engines.ray_exchange import Answered, Died, Event, Lost
from fedalign.engines.ray_grid import RayGrid
from fedalign.engines.ray_pieces import Piece
from fedalign.engines.ray_worker import Worker
from fedalign.federation.client_app import make_client_app
from fedalign.federation.site import OpenSite

Judge = Callable[[Piece], bool]


def never(piece: Piece) -> bool:
    return False


class Stored:
    """An object in the store: bytes, as another process would read them."""

    def __init__(self, value: Any) -> None:
        self.content = pickle.dumps(value)


class FakePool:
    """Workers that take turns as ``choose`` says.

    Parameters
    ----------
    open_site : callable
    workers : int
    choose : callable
        From the number of workers that have something to do to the place of the one that goes on.
    kills, hangs, loses : callable
        Whether a worker dies of a piece, never answers it, or cannot read what its clients kept.
    each : int
        Calls that a worker takes at a time.
    """

    def __init__(
        self,
        open_site: OpenSite,
        workers: int,
        choose: Callable[[int], int] = lambda number: number - 1,
        kills: Judge = never,
        hangs: Judge = never,
        loses: Judge = never,
        each: int = 2,
    ) -> None:
        self.open_site, self.choose, self.kills, self.hangs, self.loses = open_site, choose, kills, hangs, loses
        self.each, self.gone = each, False
        self.queues: list[dict[int, tuple[Piece, tuple[Any, ...]]]] = [{} for _ in range(workers)]
        self.numbers = itertools.count(1)
        self.configs: list[str] = []
        self.sent: list[tuple[str, ...]] = []
        self.stored, self.read, self.most, self.abandoned = 0, 0, 0, 0

    def start(self, config: str) -> None:
        self.configs.append(config)

    def put(self, value: Any) -> Stored:
        self.stored += 1
        return Stored(value)

    def get(self, handle: Stored) -> Any:
        self.read += 1
        if self.gone:
            raise LookupError("its machine is gone")
        return pickle.loads(handle.content)

    def free(self) -> int | None:
        load, place = min((len(queue), place) for place, queue in enumerate(self.queues))
        return place if load < self.each else None

    def send(self, worker: int, piece: Piece, handles: Sequence[Stored], wanted: Sequence[Any]) -> int:
        call = next(self.numbers)
        self.queues[worker][call] = (
            piece,
            (piece.letters, wanted, *(pickle.loads(handle.content) for handle in handles)),
        )
        self.sent.append(piece.clients)
        self.most = max(self.most, sum(map(len, self.queues)))
        return call

    def wait(self, timeout: float | None) -> list[Event]:
        busy = [queue for queue in self.queues if queue and not self.hangs(next(iter(queue.values()))[0])]
        if not busy:
            assert timeout is not None
            return []
        queue = busy[self.choose(len(busy))]
        call, (piece, arguments) = next(iter(queue.items()))
        if self.kills(piece):
            waiting = tuple(number for number in queue if number != call)
            # It had done its work, and died before it could tell.
            self._work(piece, arguments)
            queue.clear()
            return [Died("shot", call, waiting)]
        del queue[call]
        if self.loses(piece):
            return [Lost(call, "its machine is gone")]
        header, reply, *records = self._work(piece, arguments)
        return [Answered(call, header, Stored(reply), [Stored(record) for record in records])]

    def abandon(self) -> None:
        self.abandoned += 1
        for queue in self.queues:
            queue.clear()

    def _work(self, piece: Piece, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        shared = pickle.loads(piece.share.handle.content)
        return Worker(self.open_site).work(shared, piece.share.number, piece.clients, *arguments)


def grid_over(pool: FakePool, clients_per_call: int = 2, retries: int = 2, path: Any = None) -> RayGrid:
    """Return a grid over a fake pool."""
    context = Context(1, 1, {}, RecordDict(), {})
    app = make_client_app(pool.open_site, path)
    return RayGrid(app, context, pool, len(pool.queues), clients_per_call, retries)
