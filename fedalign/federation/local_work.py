"""A node's local training in one order: client by client, or many clients side by side where phase and node can."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from flwr.app import Context

from fedalign.contribution import Contribution, StackedContribution, State
from fedalign.federation.batching import Batching
from fedalign.federation.site import Site, forget_memory, load_memory, store_memory
from fedalign.methods.base import Phase
from fedalign.rng import Streams

_log = logging.getLogger(__name__)


class LocalWork:
    """Trains an order's clients, each of them once.

    Parameters
    ----------
    site : Site
    phase : Phase
    state : State
    streams : callable
        From a client to its streams in this round.
    context : Context
        Holds the clients' memories.
    batching : Batching or None
        None trains one by one.
    """

    def __init__(
        self,
        site: Site,
        phase: Phase[Any],
        state: State,
        streams: Callable[[str], Streams],
        context: Context,
        batching: Batching | None,
    ) -> None:
        self._site, self._phase, self._state, self._streams = site, phase, state, streams
        self._context = context
        device = str(next(iter(state.values())).device) if state else "cpu"
        self._batching = None if batching is None else batching.of(phase, device)
        self._waiting: deque[str] = deque()
        self._alone = 0
        self._stacks: dict[str, tuple[StackedContribution, int]] = {}

    @property
    def batched(self) -> bool:
        """Whether clients may be trained side by side."""
        return self._batching is not None

    def expect(self, clients: Sequence[str]) -> None:
        """Remember who will be trained, in this order."""
        self._waiting = deque(clients)

    def one(self, client: str) -> Contribution:
        """Return one client's contribution; others that wait behind it may be trained along with it.

        Raises
        ------
        Exception
            Whatever kept the client from contributing.
        """
        if self._batching is None:
            return self._train(client)
        if client not in self._stacks and self._waiting and self._waiting[0] == client:
            names = list(self._waiting)
            stacked = self.stack()
            if stacked is not None:
                self._stacks.update({name: (stacked, place) for place, name in enumerate(names[: len(stacked)])})
        if client in self._stacks:
            stacked, place = self._stacks.pop(client)
            return stacked.one(place)
        if self._waiting and self._waiting[0] == client:
            self._waiting.popleft()
            self._alone = max(0, self._alone - 1)
        start = self._batching.clock()
        told = self._train(client)
        self._batching.note(1, self._batching.clock() - start)
        return told

    def stack(self) -> StackedContribution | None:
        """Train the next clients that wait side by side, as many as pays; None if the next is to be trained alone."""
        if self._batching is None or not self._waiting or self._alone:
            return None
        size = self._batching.size(len(self._waiting))
        if size < 2:
            return None
        start = self._batching.clock()
        try:
            stacked = self._train_many([self._waiting[place] for place in range(size)])
        except Exception as error:
            # It may be the fault of one of them alone, and is found out when they are trained one by one.
            rest = "; from now on all are trained one by one" if self._batching.broke() else ""
            _log.warning("phase %s: %d clients cannot be trained together: %s%s", self._phase.name, size, error, rest)
            self._alone = size
            return None
        self._batching.note(size, self._batching.clock() - start)
        for _ in range(size):
            self._waiting.popleft()
        return stacked

    def _train(self, client: str) -> Contribution:
        memory = load_memory(self._context, self._phase.name, client)
        try:
            told = self._phase.local(self._state, self._site.data.shard(client), self._streams(client), memory)
        except Exception:
            forget_memory(self._context, self._phase.name, client)
            raise
        store_memory(self._context, self._phase.name, client, memory)
        return told

    def _train_many(self, clients: Sequence[str]) -> StackedContribution:
        memories = [load_memory(self._context, self._phase.name, client) for client in clients]
        shards = [self._site.data.shard(client) for client in clients]
        streams = [self._streams(client) for client in clients]
        stacked = self._phase.local_many(self._state, shards, streams, memories)
        for place, (client, memory) in enumerate(zip(clients, memories, strict=True)):
            if place in stacked.failures:
                forget_memory(self._context, self._phase.name, client)
            else:
                store_memory(self._context, self._phase.name, client, memory)
        return stacked
