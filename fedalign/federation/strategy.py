"""The server's side of a round as a Flower strategy: who is asked, what they get, how replies become a step."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedalign.contribution import Contribution, NoWeight, State, UnorderedTotal
from fedalign.federation.aggregation import Aggregation, Mean
from fedalign.federation.attendance import Attendance
from fedalign.federation.custody import Custody, NoCustody
from fedalign.federation.directory import ClientDirectory
from fedalign.federation.messages import EVALUATE, INSTRUCTION, STATE, TRAIN, Instruction, NodeReport, Terms
from fedalign.federation.population import Absence, Turnout
from fedalign.federation.records import decode_tensors, encode_tensors, payload_bytes
from fedalign.federation.replies import Inspect, ReplyReader, Tally
from fedalign.federation.sampling import Sampler
from fedalign.federation.server_optimizer import Stepper
from fedalign.methods.base import Needs, Participation, Phase
from fedalign.metrics.record import MetricSum, decode
from fedalign.rng import Streams

_log = logging.getLogger(__name__)


class SumStrategy(Strategy):
    """Runs one phase whose server step is a function of the total of the replies.

    It holds no method and no paper: the phase says what is local and what is the update.

    Parameters
    ----------
    phase : Phase
    index : int
        The phase's place in the method.
    directory : ClientDirectory
    sampler : Sampler
    optimizer : Stepper
    config : str
        The resolved run configuration (JSON) that nodes build their side from.
    seed : int
    custody : Custody or None
        Guards what is released; None promises nothing.
    attendance : Attendance or None
        Says who comes; None has everybody come.
    least : int
        A round to which fewer clients contribute is not applied.

    Attributes
    ----------
    aggregation : Aggregation
        How replies become one, and what one may hold.
    lost : bool
        Whether the last round had too few contributions.
    """

    aggregation: Aggregation = Mean(client_weight=None, client_norm=None, client_scalars=100_000)

    def __init__(
        self,
        phase: Phase[Any],
        index: int,
        directory: ClientDirectory,
        sampler: Sampler,
        optimizer: Stepper,
        config: str,
        seed: int,
        custody: Custody | None = None,
        attendance: Attendance | None = None,
        least: int = 1,
    ) -> None:
        self.attendance = Attendance() if attendance is None else attendance
        self.custody = NoCustody() if custody is None else custody
        self.phase, self.index, self.directory = phase, index, directory
        self.sampler, self.optimizer, self.config, self.seed = sampler, optimizer, config, seed
        self.least, self.lost = least, False
        self.tally = Tally()
        self.train_sums: list[MetricSum] = []
        self.evaluation_sums: list[MetricSum] = []
        self.evaluation_tensors: Mapping[str, Tensor] = {}
        self._training = directory.training_for(phase.stage)
        self._arrays = ArrayRecord()
        self._terms = Terms()
        self._cohort: tuple[int, list[str]] = (0, [])
        self._asked: frozenset[str] = frozenset()
        self._away: frozenset[int] = frozenset()

    def summary(self) -> None:
        """Log what the strategy runs."""
        _log.info("phase %s: %d training clients", self.phase.name, len(self._training))

    def meet(self, directory: ClientDirectory, away: frozenset[int]) -> None:
        """Hear who takes part from the next exchange on, and which of their nodes are not to be asked."""
        self.directory, self._away = directory, away
        self._training = directory.training_for(self.phase.stage)

    def cohort(self, server_round: int) -> list[str]:
        """Return the clients of a round; a function of seed, phase and round, unless the cohort is to be a secret."""
        if self._cohort[0] != server_round:
            self._cohort = (server_round, self._draw(server_round))
        return self._cohort[1]

    def _draw(self, server_round: int) -> list[str]:
        if self.phase.participation is Participation.ALL:
            return list(self._training)
        generator = self.custody.cohort_generator(Streams(self.seed, self.phase.name, server_round))
        return self.attendance.draw(self.sampler, self._training, generator, server_round)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Address the cohort of a round; one message a node, or one a client where replies are needed singly."""
        self._arrays = arrays
        cohort, travels = self.cohort(server_round), self._travels(arrays)
        # Charged for having been drawn, whether or not they come.
        self.custody.announce(self.phase, cohort)
        self._terms = self.custody.training_terms(self.phase, travels, cohort)
        turnout = self.attendance.hold(self.phase, travels, cohort, Streams(self.seed, self.phase.name, server_round))
        self._ask(cohort, travels, turnout)
        return self._address(grid, TRAIN, turnout.present, travels, server_round, self._singly)

    @property
    def _singly(self) -> bool:
        """Whether each client's own reply is needed."""
        return self.phase.needs is Needs.INDIVIDUAL or self.aggregation.individual

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Add the replies up and let the phase update its state.

        Raises
        ------
        RunFailed
            If clients were asked and none contributed.
        """
        state, told = decode_tensors(self._arrays), self._travels(self._arrays)
        inspect = functools.partial(self.custody.inspect, self.phase, told, self._terms)
        reader = self._reader(f"round {server_round} of phase {self.phase.name}", inspect, TRAIN, server_round)
        self.train_sums = []
        running = UnorderedTotal()
        single: dict[str, Contribution] = {}

        def take(report: NodeReport, contribution: Contribution) -> None:
            if self._singly and len(report.clients) > 1:
                raise ValueError("one reply for several clients, where each one's own was asked for")
            running.add(contribution)
            if self._singly:
                single[report.clients[0]] = contribution

        reader.read(replies, take)
        self.lost = False
        if not self.custody.releases_always:
            reader.check_answered()
            # A simulated population may be asleep for many rounds, which costs nothing where no minimum is asked for.
            self.lost = self.least > 1 and self.tally.asked > 0 and self.tally.updates < self.least
            if self.lost or not self.tally.updates:
                return self._arrays, None
        cohort = self.cohort(server_round)
        # In the order of the clients, whatever node they came from and when.
        replies_of_all = [single[client] for client in cohort if client in single]
        robust = self.aggregation.individual and self.phase.needs is Needs.SUM
        if robust and len(single) < self.aggregation.fewest:
            _log.warning(
                "round %d of phase %s is not applied: %d replies, and the aggregation needs %d",
                server_round, self.phase.name, len(single), self.aggregation.fewest,
            )  # fmt: skip
            return self._arrays, None
        summed = self.aggregation.combine(replies_of_all, running.value()) if robust else running.value()
        summed = self.custody.release(self.phase, told, server_round, cohort, summed)
        try:
            if self.phase.needs is Needs.INDIVIDUAL:
                state = self.phase.update_each(state, replies_of_all, self.optimizer)
            else:
                state = self.phase.update(state, summed, self.optimizer)
        except (NoWeight, KeyError) as error:
            template = self.phase.template(told)
            # What nobody sent is missing from a total; any other missing key is a mistake of ours.
            if isinstance(error, KeyError) and (template is None or error.args[0] not in template.tensors):
                raise
            _log.warning("round %d of phase %s is not applied: %s", server_round, self.phase.name, error)
            return self._arrays, None
        self.train_sums = decode(summed.scalars)
        return encode_tensors(state), _record(self.train_sums)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Address every client that the phase is evaluated on; nobody where metrics are withheld."""
        clients, travels = self.directory.evaluated_for(self.phase), self._travels(arrays)
        terms = self.custody.evaluation_terms(self.phase, clients) if clients else None
        asked = [] if terms is None else clients
        self._ask(asked, travels, Turnout(tuple(asked)))
        if terms is None:
            return []
        self.custody.announce_evaluation(self.phase)
        self._terms = terms
        return self._address(grid, EVALUATE, clients, travels, server_round, single=False)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Add the metric sums up.

        Raises
        ------
        RunFailed
            If no client answered.
        """
        name = self.phase.name
        what = f"evaluation of phase {name}, round {server_round}"
        reader = self._reader(what, self.custody.inspect_metrics, EVALUATE, server_round)
        running = UnorderedTotal()
        reader.read(replies, lambda _, contribution: running.add(contribution))
        self.evaluation_sums, self.evaluation_tensors = [], {}
        if not self.tally.asked:
            return None
        reader.check_answered()
        summed = self.custody.release_metrics(self.phase, server_round, running.value())
        self.evaluation_sums, self.evaluation_tensors = decode(summed.scalars), summed.tensors
        return _record(self.evaluation_sums)

    def _travels(self, arrays: ArrayRecord) -> State:
        """Return what of a state the clients are sent."""
        return self.phase.broadcast(decode_tensors(arrays))

    def _ask(self, clients: Sequence[str], travels: State, turnout: Turnout) -> None:
        """Begin to count an exchange; who is offline is sent nothing, and may not answer any more than others."""
        sent = len(clients) - turnout.count(Absence.OFFLINE)
        self.tally = Tally(asked=len(clients), received_bytes=payload_bytes(travels) * sent, turnout=turnout)
        if clients and not turnout.present:
            away = ", ".join(f"{turnout.count(each)} {each}" for each in Absence)
            self.tally.reasons.append(f"nobody was there ({away})")
        self._asked = frozenset(turnout.present)

    def _address(
        self,
        grid: Grid,
        kind: str,
        clients: Sequence[str],
        travels: State,
        server_round: int,
        single: bool,
    ) -> list[Message]:
        arrays = encode_tensors(travels)
        batches = [
            (node, batch)
            for node, hosted in self.directory.by_node(clients).items()
            for batch in ([[client] for client in hosted] if single else [hosted])
        ]
        messages = []
        for node, batch in batches:
            if node in self._away:
                self.tally.reasons.append(f"{', '.join(batch)}: node {node} is gone")
                continue
            instruction = Instruction(self.config, self.index, server_round, tuple(batch), self._terms)
            content = RecordDict({STATE: arrays, INSTRUCTION: instruction.to_record()})
            messages.append(grid.create_message(content, kind, node, str(server_round)))
        return messages

    def _reader(self, what: str, inspect: Inspect, kind: str, server_round: int) -> ReplyReader:
        """Return what reads the replies of the exchange that was begun last."""

        def bounded(clients: int, contribution: Contribution) -> None:
            self.aggregation.check(clients, contribution, self.phase.client_weight)
            inspect(clients, contribution)

        node_of, group = self.directory.node_of, str(server_round)
        return ReplyReader(what, self._asked, node_of, self.tally, bounded, kind, group)


def _record(sums: Sequence[MetricSum]) -> MetricRecord:
    """Return per-group means in the form that Flower's own tools show."""
    return MetricRecord({f"{item.name}/{item.group}": item.total / item.n for item in sums})
