"""The workers of the Ray engine as actors: started, given calls, and started anew when they die."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from fedalign.engines.ray_exchange import Answered, Died, Event, Lost
from fedalign.engines.ray_memories import Handle
from fedalign.engines.ray_pieces import Piece
from fedalign.engines.ray_reasons import last_words, reason_of
from fedalign.engines.ray_worker import Started, Worker
from fedalign.errors import RunFailed
from fedalign.federation.site import OpenSite

_log = logging.getLogger(__name__)

_SHORT_SECONDS = 0.1
"""A worker whose calls are shorter has the next one waiting, so that it need not wait for the driver; behind a longer
one it would wait for a worker while others have nothing to do."""


@dataclass
class _Seat:
    """A worker's place in the pool, and who sits on it.

    Parameters
    ----------
    actor : object
    began : float
        When it was asked for.
    starting, opening : object or None
        What will tell that it is there, and that it has opened the site.
    started : Started or None
    calls : dict from call to its handles, in the order they were sent
    failures : int
        How often in a row nobody came to sit.
    short : bool
        Whether the last call was.
    """

    actor: Any
    began: float
    starting: Any
    opening: Any = None
    started: Started | None = None
    calls: dict[int, list[Handle]] = field(default_factory=dict)
    failures: int = 0
    short: bool = False

    @property
    def ready(self) -> bool:
        """Whether it can begin with a call, or soon will."""
        return self.started is not None and self.opening is None and len(self.calls) <= self.short


class RayPool:
    """A fixed number of actors.

    Parameters
    ----------
    open_site : callable
    workers : int
    cpus, gpus : float
        That each takes.
    start_timeout : float
        Seconds within which the first must be there.
    retries : int
        How often a worker that cannot start is started again.
    """

    def __init__(
        self, open_site: OpenSite, workers: int, cpus: float, gpus: float, start_timeout: float, retries: int
    ) -> None:
        self._open_site, self._timeout, self._retries = open_site, start_timeout, retries
        # Ray itself would start one again, but not the call that was lost with it.
        self._kind = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0)(Worker)
        self._numbers = itertools.count(1)
        self._config: str | None = None
        self._sees_gpus, self._opens = gpus > 0, False
        self._warned = False
        self._seats = [self._seat() for _ in range(workers)]

    def start(self, config: str) -> None:
        """Let every worker open the site of a run."""
        if self._config is None:
            self._config = config
            for seat in self._seats:
                seat.opening = seat.actor.open.remote(config)

    def put(self, value: Any) -> Handle:
        """Put a value where every worker can read it."""
        return ray.put(value)

    def get(self, handle: Handle) -> Any:
        """Read a value.

        Raises
        ------
        LookupError
            If it was on a machine that is gone.
        """
        try:
            return ray.get(handle)
        except RayError as error:
            raise LookupError(_short(error)) from error

    def free(self) -> int | None:
        """Return the worker that has least to do; None where all have enough or are not ready."""
        loads = [(len(seat.calls), place) for place, seat in enumerate(self._seats) if seat.ready]
        return min(loads)[1] if loads else None

    def send(
        self,
        worker: int,
        piece: Piece,
        handles: Sequence[Handle],
        wanted: Sequence[tuple[str, ...]],
    ) -> int:
        """Give a worker a piece and return the call's number."""
        seat, call, share = self._seats[worker], next(self._numbers), piece.share
        method = seat.actor.work.options(num_returns=2 + len(piece.clients))
        seat.calls[call] = method.remote(share.handle, share.number, piece.clients, piece.letters, wanted, *handles)
        return call

    def wait(self, timeout: float | None) -> list[Event]:
        """Return what has happened; empty when ``timeout`` seconds have passed, or a worker has become ready.

        Raises
        ------
        RunFailed
            If no worker can be started, or one cannot open the data.
        """
        watched: dict[Any, _Seat] = {}
        for seat in self._seats:
            for handle in self._awaited(seat):
                watched[handle] = seat
        patience = self._patience()
        limits = [limit for limit in (timeout, patience) if limit is not None]
        done, _ = ray.wait(list(watched), num_returns=1, timeout=max(0.0, min(limits)) if limits else None)
        if not done and patience is not None and not (timeout is not None and timeout < patience):
            self._out_of_patience()
        seats = {id(watched[handle]): watched[handle] for handle in done}
        return [event for seat in seats.values() for event in self._look_at(seat)]

    def abandon(self) -> None:
        """Forget calls that are not answered, and the workers that are at them."""
        for seat in self._seats:
            if seat.calls:
                self._reseat(seat)

    def close(self) -> None:
        """End every worker."""
        for seat in self._seats:
            ray.kill(seat.actor, no_restart=True)
        self._seats = []

    def _seat(self) -> _Seat:
        actor: Any = self._kind.remote(self._open_site)
        seat = _Seat(actor, time.monotonic(), actor.hello.remote())
        if self._config is not None:
            seat.opening = actor.open.remote(self._config)
        return seat

    def _reseat(self, seat: _Seat) -> None:
        ray.kill(seat.actor, no_restart=True)
        fresh = self._seat()
        seat.actor, seat.began, seat.starting, seat.opening = fresh.actor, fresh.began, fresh.starting, fresh.opening
        seat.started, seat.calls = None, {}

    def _awaited(self, seat: _Seat) -> list[Any]:
        """Return what is next to come from a worker."""
        if seat.started is None:
            return [seat.starting]
        if seat.opening is not None:
            return [seat.opening]
        return [handles[0] for handles in seat.calls.values()]

    def _patience(self) -> float | None:
        """Return for how long nobody being there can be borne; None where somebody is."""
        if any(seat.started for seat in self._seats):
            return None
        return max(seat.began for seat in self._seats) + self._timeout - time.monotonic()

    def _out_of_patience(self) -> None:
        left = ray.available_resources()  # type: ignore[no-untyped-call]
        free = " and ".join(f"{left.get(kind, 0.0):g} {kind}s" for kind in ("CPU", "GPU"))
        raise RunFailed(
            f"no worker could be started within engine.start_timeout={self._timeout:g} s; Ray has {free} free, "
            "others may be using it"
        )

    def _look_at(self, seat: _Seat) -> list[Event]:
        """Take in what has come from one worker."""
        try:
            if seat.started is None:
                seat.started, seat.starting = ray.get(seat.starting), None
                return []
            if seat.opening is not None:
                return self._opened(seat, ray.get(seat.opening))
        except RayActorError as error:
            return self._stillborn(seat, error)
        except RayError as error:
            raise RunFailed(f"a worker cannot be started: {_short(error)}") from error
        return self._collect(seat)

    def _opened(self, seat: _Seat, wrong: str | None) -> list[Event]:
        """Take note that a worker is ready; where it is not, but others were before it, it is started again."""
        if wrong is None:
            seat.opening, seat.failures, self._opens = None, 0, True
            return []
        host = seat.started.host if seat.started else "?"
        told = f"a worker on {host} cannot open the run's data: {wrong}"
        if not self._sees_gpus and "cuda" in wrong.lower():
            told += "; a worker sees the GPUs that are set aside for it alone: set engine.gpus_per_worker"
        return self._start_again(seat, told, self._opens)

    def _stillborn(self, seat: _Seat, error: RayActorError) -> list[Event]:
        """Start a worker again that died before it was ready."""
        reason = self._reason(seat, error)
        told = f"a worker cannot be started: {reason}"
        return self._start_again(seat, told, "creation task" not in str(error))

    def _start_again(self, seat: _Seat, told: str, hopeful: bool) -> list[Event]:
        """Start a worker again that is not ready; end the run where that has no hope, or was tried often enough."""
        seat.failures += 1
        if seat.failures > self._retries or not hopeful:
            raise RunFailed(told)
        _log.warning("%s; it is started again", told)
        self._reseat(seat)
        return [Died(told, None, ())]

    def _collect(self, seat: _Seat) -> list[Event]:
        events: list[Event] = []
        for call, handles in list(seat.calls.items()):
            if not ray.wait([handles[0]], timeout=0)[0]:
                break
            try:
                header: Any = ray.get(handles[0])
            except RayActorError as error:
                waiting = tuple(number for number in seat.calls if number > call)
                events.append(Died(self._reason(seat, error), call, waiting))
                self._reseat(seat)
                return events
            except RayError as error:
                events.append(Lost(call, _short(error)))
            else:
                seat.short = header.seconds < _SHORT_SECONDS
                events.append(Answered(call, header, handles[1], handles[2:]))
            del seat.calls[call]
        return events

    def _reason(self, seat: _Seat, error: RayError) -> str:
        """Return why a worker died, with the last that it said where its log can be read here."""
        told = last_words(Path(seat.started.log)) if seat.started else ""
        return f"{_short(error)}; its last words: {told}" if told else _short(error)


def _short(error: RayError) -> str:
    """Return an error of Ray in one line."""
    cause = error.cause if isinstance(error, RayTaskError) else None
    return f"{type(cause).__name__}: {cause}" if isinstance(cause, Exception) else reason_of(str(error))
