"""What a node does with an order: each client's work, bounded or masked as the run asks, and the sum of it."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from flwr.app import Context, Message, RecordDict

from fedalign.compression.base import NoCompression
from fedalign.contribution import Contribution, RunningTotal, State
from fedalign.data.timed import TimedData
from fedalign.federation import secure_client
from fedalign.federation.batching import Batching
from fedalign.federation.compressing import compressed
from fedalign.federation.custodian import extra_names
from fedalign.federation.failures import failure_of, forget_work
from fedalign.federation.local_work import LocalWork
from fedalign.federation.messages import REPORT, STATE, Instruction, NodeReport
from fedalign.federation.packed_records import contribution_bytes
from fedalign.federation.records import decode_tensors, encode_contribution, payload_bytes, stacked_bytes
from fedalign.federation.secure.fixed_point import Words
from fedalign.federation.secure.letters import LETTERS, read_letters
from fedalign.federation.shield import check, check_stacked, metric_scalars, shield, shield_metrics
from fedalign.federation.site import Site
from fedalign.federation.vectors import public_streams, word_code
from fedalign.methods.base import Phase
from fedalign.privacy.metric_release import OpenMetrics
from fedalign.privacy.protection import Protection
from fedalign.rng import Streams
from fedalign.template import Template, Vector

Timed = Callable[[NodeReport], NodeReport]

_MOST_AHEAD, _BYTES_AHEAD = 16, 2**20
"""How many clients work before what they made is looked at, and how much they may have made by then."""


@dataclass(frozen=True)
class Told:
    """What some clients of an order add together.

    Parameters
    ----------
    clients : tuple of str
        Those that contributed.
    sum : Contribution or None
        None where nobody did.
    sent_bytes : int
        Size of their contributions one by one, as if every client had sent its own.
    seconds : float
        Time that it took.
    failures : tuple of (client, Exception)
    """

    clients: tuple[str, ...]
    sum: Contribution | None
    sent_bytes: int
    seconds: float
    failures: tuple[tuple[str, Exception], ...] = ()


class Desk(ABC):
    """Carries out one order for the clients of a node.

    Parameters
    ----------
    site : Site
    order : Instruction
    message : Message
        Holds the state.

    Attributes
    ----------
    exchange : str
        Keeps the noise of training and of the evaluation after it apart.
    data : TimedData
        What the clients' shards are taken from.
    began : float
        When the order came.
    """

    exchange: ClassVar[str]

    def __init__(self, site: Site, order: Instruction, message: Message) -> None:
        self.began = time.perf_counter()
        self.data = TimedData(site.data)
        self.site, self.order = replace(site, data=self.data), order
        self.phase: Phase[Any] = site.phases[order.phase]
        self.state: State = decode_tensors(message.content.array_records[STATE])

    @abstractmethod
    def work(self, client: str) -> Contribution:
        """Return what a client makes of the order."""

    @abstractmethod
    def finish(self, client: str, made: Contribution) -> Contribution:
        """Return what a client made as it may travel by itself.

        Raises
        ------
        ValueError
            If it may not.
        """

    @abstractmethod
    def vector(self, client: str, privacy: Protection) -> Vector:
        """Return what a client adds to a secure sum, shape (terms.size,)."""

    def told(self, clients: Sequence[str]) -> Iterator[Told]:
        """Yield what clients add, in their order.

        A few work one after another before what they made is looked at: one kind of code at a time stays in the
        processor's caches, which is worth a tenth of an update of a small model.
        """
        ahead = max(1, min(_MOST_AHEAD, _BYTES_AHEAD // max(1, payload_bytes(self.state))))
        for start in range(0, len(clients), ahead):
            for client, made in [(client, self._timed(client)) for client in clients[start : start + ahead]]:
                yield self._told(client, made)

    def told_by(self, client: str) -> Told:
        """Return what one client adds, or why it does not."""
        return self._told(client, self._timed(client))

    def _timed(self, client: str) -> tuple[Contribution | Exception, float]:
        """Return what a client makes, or why it does not, and the seconds that it took."""
        start = time.perf_counter()
        try:
            return self.work(client), time.perf_counter() - start
        except Exception as error:
            found = error
        forget_work(found)
        return found, 0.0

    def _told(self, client: str, made: tuple[Contribution | Exception, float]) -> Told:
        found, seconds = made
        if isinstance(found, Exception):
            return Told((), None, 0, 0.0, ((client, found),))
        start = time.perf_counter()
        try:
            sent = self.finish(client, found)
        except Exception as error:
            return Told((), None, 0, 0.0, ((client, error),))
        return Told((client,), sent, contribution_bytes(sent), seconds + time.perf_counter() - start)

    def expect(self, clients: Sequence[str]) -> None:  # noqa: B027 - most work client by client
        """Be told who will be asked for next, in this order."""

    def timed(self, report: NodeReport) -> NodeReport:
        """Return a report with where the time went since the order came."""
        busy = time.perf_counter() - self.began
        return replace(report, data_s=self.data.seconds, message_s=max(0.0, busy - report.seconds))

    def streams(self, client: str) -> Streams:
        """Return the client's streams in this round."""
        return Streams(self.site.seed, self.phase.name, self.order.round, client)

    def words(self, client: str) -> Words:
        """Return what a client adds to a secure sum as words, with its share of the noise where clients add it."""
        privacy = self.site.privacy
        assert isinstance(privacy, Protection)
        code = word_code(privacy)
        assert code is not None
        secret = privacy.randomness.generator(self.streams(client), f"share of the noise in {self.exchange}")
        vector = self.vector(client, privacy)
        return code.encode(vector, self.order.terms, public_streams(self.site.seed, self.order), secret)


class TrainingDesk(Desk):
    """Local training, with what a client keeps between rounds.

    Parameters
    ----------
    site, order, message
        See :class:`Desk`.
    context : Context
        Holds the clients' memories.
    batching : Batching or None
        How many clients are trained side by side; None trains one by one.
    """

    exchange = "training"

    def __init__(
        self, site: Site, order: Instruction, message: Message, context: Context, batching: Batching | None = None
    ) -> None:
        super().__init__(site, order, message)
        self._context = context
        self._template = self.phase.template(self.state)
        self._work = LocalWork(site, self.phase, self.state, self.streams, context, batching)

    def expect(self, clients: Sequence[str]) -> None:
        """Let these be trained together, if that is how the node does it, when the first of them is asked for."""
        self._work.expect(clients)

    def work(self, client: str) -> Contribution:
        """Return what the client has learnt."""
        return self._work.one(client)

    def finish(self, client: str, made: Contribution) -> Contribution:
        """Return what the client has learnt, checked, and bounded where there is a guarantee."""
        privacy = self.site.privacy
        if not isinstance(privacy, Protection):
            return self._compressed(client, check(made, self._template))
        template = self._known_template()
        shielded = shield(made, template, privacy, self.order.terms).to_contribution(template)
        return self._compressed(client, shielded, self.order.terms.bound)

    def vector(self, client: str, privacy: Protection) -> Vector:
        """Return the client's bounded vector, and the numbers beside it."""
        shielded = shield(self._work.one(client), self._known_template(), privacy, self.order.terms)
        extras = np.array([shielded.extras[name] for name in extra_names(privacy)], dtype=np.float64)
        return np.concatenate([shielded.vector, extras])

    def told(self, clients: Sequence[str]) -> Iterator[Told]:
        """Yield what clients add; of a stack the sum at once, where nothing is done to single contributions."""
        self.expect(clients)
        alone = isinstance(self.site.privacy, Protection) or not isinstance(self.site.compression, NoCompression)
        if alone or not self._work.batched:
            yield from super().told(clients)
            return
        waiting = deque(clients)
        while waiting:
            start = time.perf_counter()
            stacked = self._work.stack()
            if stacked is None:
                yield self.told_by(waiting.popleft())
                continue
            names = [waiting.popleft() for _ in range(len(stacked))]
            summed, places, failures = check_stacked(stacked, self._template)
            yield Told(
                tuple(names[place] for place in places),
                summed if places else None,
                stacked_bytes(stacked, places),
                time.perf_counter() - start,
                tuple((names[place], error) for place, error in sorted(failures.items())),
            )

    def _compressed(self, client: str, told: Contribution, bound: float = 0.0) -> Contribution:
        return compressed(told, self.site.compression, self._context, self.streams(client), bound)

    def _known_template(self) -> Template:
        if self._template is None:
            raise ValueError(f"phase {self.phase.name} has no template")
        return self._template


class EvaluationDesk(Desk):
    """Metric sums."""

    exchange = "evaluation"

    def work(self, client: str) -> Contribution:
        """Return the client's metrics."""
        return self.phase.evaluate(self.state, self.site.data.shard(client), self.streams(client))

    def finish(self, client: str, made: Contribution) -> Contribution:
        """Return the client's metrics, all of them where they are open."""
        privacy = self.site.privacy
        if not isinstance(privacy, Protection) or isinstance(privacy.metrics, OpenMetrics):
            return made
        return Contribution(scalars=metric_scalars(self._values(made, privacy), self.site.metrics))

    def vector(self, client: str, privacy: Protection) -> Vector:
        """Return the client's values of the metrics that are released."""
        return self._values(self.work(client), privacy)

    def _values(self, told: Contribution, privacy: Protection) -> Vector:
        return shield_metrics(told, self.site.metrics, privacy.private)


def answer(message: Message, context: Context, desk: Desk) -> RecordDict:
    """Return the sum of the clients' contributions, or each one's words under masks where the sum is secure.

    Raises
    ------
    ValueError
        If the run asks for a secure sum and the order does not: what comes in the open is then not to leave.
    """
    if LETTERS not in message.content.config_records:
        if isinstance(desk.site.privacy, Protection) and desk.site.privacy.secure is not None:
            raise ValueError("this run adds up under masks only, and the order has no letters")
        return add_up(desk.told(desk.order.clients), desk.site.guarded, desk.timed)
    desk.expect(list(read_letters(message.content)))

    def work(client: str) -> tuple[Words, float]:
        start = time.perf_counter()
        words = desk.words(client)
        return words, time.perf_counter() - start

    return secure_client.mask(message, context, work)


def add_up(parts: Iterable[Told], guarded: bool = False, timed: Timed = lambda report: report) -> RecordDict:
    """Return the sum of what clients add with a report; one that failed is left out and named.

    ``timed`` completes the report.
    """
    running, only = RunningTotal(), None
    failures: list[tuple[str, str]] = []
    done: list[str] = []
    sent, seconds = 0, 0.0
    for part in parts:
        failures += [(client, failure_of(client, error, guarded)) for client, error in part.failures]
        if part.sum is None:
            continue
        first = not done
        done += part.clients
        sent, seconds = sent + part.sent_bytes, seconds + part.seconds
        # A single reply keeps its own precision: as float64 it would be twice as long and no more exact.
        if first:
            only = part.sum
            continue
        if only is not None:
            running.add(only)
            only = None
        running.add(part.sum)
    content = encode_contribution(only if only is not None else running.value())
    content[REPORT] = timed(NodeReport(tuple(done), seconds, sent, tuple(failures))).to_record()
    return content
