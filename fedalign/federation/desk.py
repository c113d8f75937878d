"""What a node does with an order: each client's work, bounded or masked as the run asks, and the sum of it."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import numpy as np
from flwr.app import Context, Message, RecordDict

from fedalign.contribution import Contribution, RunningTotal, State
from fedalign.federation import secure_client
from fedalign.federation.custodian import extra_names
from fedalign.federation.failures import failure_of
from fedalign.federation.messages import REPORT, STATE, Instruction, NodeReport
from fedalign.federation.records import decode_tensors, encode_contribution, payload_bytes
from fedalign.federation.secure.fixed_point import Words
from fedalign.federation.secure.letters import LETTERS
from fedalign.federation.shield import check, metric_scalars, shield, shield_metrics
from fedalign.federation.site import Site, forget_memory, load_memory, store_memory
from fedalign.federation.vectors import public_streams, word_code
from fedalign.methods.base import Phase
from fedalign.privacy.metric_release import OpenMetrics
from fedalign.privacy.protection import Protection
from fedalign.rng import Streams
from fedalign.template import Template, Vector

Work = Callable[[str], Contribution]


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
    """

    exchange: ClassVar[str]

    def __init__(self, site: Site, order: Instruction, message: Message) -> None:
        self.site, self.order = site, order
        self.phase: Phase[Any] = site.phases[order.phase]
        self.state: State = decode_tensors(message.content.array_records[STATE])

    @abstractmethod
    def contribution(self, client: str) -> Contribution:
        """Return what a client adds, as it may travel by itself."""

    @abstractmethod
    def vector(self, client: str, privacy: Protection) -> Vector:
        """Return what a client adds to a secure sum, shape (terms.size,)."""

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
    """Local training, with what a client keeps between rounds."""

    exchange = "training"

    def __init__(self, site: Site, order: Instruction, message: Message, context: Context) -> None:
        super().__init__(site, order, message)
        self._context = context
        self._template = self.phase.template(self.state)

    def contribution(self, client: str) -> Contribution:
        """Return the client's contribution, checked, and bounded where there is a guarantee."""
        told, privacy = self._train(client), self.site.privacy
        if not isinstance(privacy, Protection):
            return check(told, self._template)
        template = self._known_template()
        return shield(told, template, privacy, self.order.terms).to_contribution(template)

    def vector(self, client: str, privacy: Protection) -> Vector:
        """Return the client's bounded vector, and the numbers beside it."""
        shielded = shield(self._train(client), self._known_template(), privacy, self.order.terms)
        extras = np.array([shielded.extras[name] for name in extra_names(privacy)], dtype=np.float64)
        return np.concatenate([shielded.vector, extras])

    def _known_template(self) -> Template:
        if self._template is None:
            raise ValueError(f"phase {self.phase.name} has no template")
        return self._template

    def _train(self, client: str) -> Contribution:
        memory = load_memory(self._context, self.phase.name, client)
        try:
            told = self.phase.local(self.state, self.site.data.shard(client), self.streams(client), memory)
        except Exception:
            forget_memory(self._context, self.phase.name, client)
            raise
        store_memory(self._context, self.phase.name, client, memory)
        return told


class EvaluationDesk(Desk):
    """Metric sums."""

    exchange = "evaluation"

    def contribution(self, client: str) -> Contribution:
        """Return the client's metrics, all of them where they are open."""
        privacy, told = self.site.privacy, self._evaluate(client)
        if not isinstance(privacy, Protection) or isinstance(privacy.metrics, OpenMetrics):
            return told
        return Contribution(scalars=metric_scalars(self._values(told, privacy), self.site.metrics))

    def vector(self, client: str, privacy: Protection) -> Vector:
        """Return the client's values of the metrics that are released."""
        return self._values(self._evaluate(client), privacy)

    def _values(self, told: Contribution, privacy: Protection) -> Vector:
        return shield_metrics(told, self.site.metrics, privacy.private)

    def _evaluate(self, client: str) -> Contribution:
        return self.phase.evaluate(self.state, self.site.data.shard(client), self.streams(client))


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
        return add_up(desk.order.clients, desk.contribution, desk.site.guarded)

    def work(client: str) -> tuple[Words, float]:
        start = time.perf_counter()
        words = desk.words(client)
        return words, time.perf_counter() - start

    return secure_client.mask(message, context, work)


def add_up(clients: Iterable[str], work: Work, guarded: bool = False) -> RecordDict:
    """Do the work for every client and return the sum with a report; one that fails is left out and named."""
    running, only = RunningTotal(), None
    failures: list[tuple[str, str]] = []
    done: list[str] = []
    sent, seconds = 0, 0.0
    for client in clients:
        start = time.perf_counter()
        try:
            contribution = work(client)
        except Exception as error:
            failures.append((client, failure_of(client, error, guarded)))
            continue
        seconds += time.perf_counter() - start
        sent += payload_bytes(contribution.tensors) + 8 * len(contribution.scalars)
        done.append(client)
        # A single reply keeps its own precision: as float64 it would be twice as long and no more exact.
        if len(done) == 1:
            only = contribution
            continue
        if only is not None:
            running.add(only)
            only = None
        running.add(contribution)
    content = encode_contribution(only if only is not None else running.value())
    content[REPORT] = NodeReport(tuple(done), seconds, sent, tuple(failures)).to_record()
    return content
