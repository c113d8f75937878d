"""A layer under the strategy: training and evaluation messages become a secure sum, and one reply holds the total."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedalign.contribution import Contribution
from fedalign.federation.exchange import exchange
from fedalign.federation.layered_grid import LayeredGrid
from fedalign.federation.messages import EVALUATE, INSTRUCTION, REPORT, STATE, TRAIN, Instruction, NodeReport
from fedalign.federation.records import encode_contribution
from fedalign.federation.secure.coordinator import Coordinator
from fedalign.federation.secure.fixed_point import Words
from fedalign.federation.secure.letters import (
    KEYS,
    LETTERS,
    SHARES,
    UNMASK,
    read_letters,
    read_vectors,
    write_letters,
)
from fedalign.federation.secure.messages import Disclosure, PublicKeys
from fedalign.federation.untrusted import one_line
from fedalign.federation.vectors import WordCode, public_streams

SUM = "sum"
"""Name of the vector in the one reply."""

Letters = Mapping[str, Mapping[str, Any]]
Take = Callable[[str, dict[str, Any]], None]


class SecureSumGrid(LayeredGrid):
    """Passes messages on, but for training and evaluation: their replies are added up under masks.

    Parameters
    ----------
    grid : Grid
    code : WordCode
    seed : int
        Of the run.
    """

    def __init__(self, grid: Grid, code: WordCode, seed: int) -> None:
        super().__init__(grid)
        self._code, self._seed = code, seed

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Yield the replies; to training and evaluation there is one, which holds the sum and who is in it.

        Raises
        ------
        RunFailed
            If too few clients stayed for their sum to be seen.
        """
        given = list(messages)
        if not given or given[0].metadata.message_type not in (TRAIN, EVALUATE):
            yield from super().send_and_receive(given, timeout=timeout)
            return
        secure = SecureExchange(self._grid, self._code, given, timeout)
        words, order = secure.run(), secure.instruction
        vector = self._code.decode(words, order.terms, public_streams(self._seed, order))
        content = encode_contribution(Contribution({SUM: torch.from_numpy(vector)}))
        content[REPORT] = secure.report.to_record()
        about = given[0].metadata
        yield self._grid.create_message(content, about.message_type, about.dst_node_id, about.group_id)


class SecureExchange:
    """One secure sum over the clients that a round's messages are addressed to.

    Parameters
    ----------
    grid : Grid
    code : WordCode
    messages : sequence of Message
        As the strategy addressed them: one a node, with the state and an instruction.
    timeout : float or None
        Seconds to wait for the answers of each of the four stages.
    """

    def __init__(self, grid: Grid, code: WordCode, messages: list[Message], timeout: float | None) -> None:
        self._grid, self._code, self._timeout, self._messages = grid, code, timeout, messages
        instructions = {m.metadata.dst_node_id: Instruction.of(m.content) for m in messages}
        self.instruction = next(iter(instructions.values()))
        self._node = {client: node for node, order in instructions.items() for client in order.clients}
        self._round_id = f"{self.instruction.phase}-{self.instruction.round}-{os.urandom(8).hex()}"
        length = code.length(self.instruction.terms.size)
        self._coordinator = Coordinator(self._round_id, list(self._node), code.settings, length)
        self.report = NodeReport((), 0.0, 0)
        self._letter_bytes = 0

    def run(self) -> Words:
        """Return the sum of the words of those who stayed to the end of the third stage.

        Raises
        ------
        RunFailed
            If too few stayed.
        """
        coordinator = self._coordinator
        self._ask(KEYS, {client: {"round_id": self._round_id} for client in self._node}, self._take_keys)
        known = coordinator.neighbourhoods().items()
        keys = {client: {name: key.to_dict() for name, key in others.items()} for client, others in known}
        self._ask(SHARES, keys, self._take_shares)
        self._collect(coordinator.inboxes())
        requests = {client: request.to_dict() for client, request in coordinator.unmask_requests().items()}
        self._ask(UNMASK, requests, self._take_disclosure)
        for client, reason in coordinator.refused.items():
            self._fail(client, reason)
        self.report = replace(self.report, sent_bytes=self.report.sent_bytes + self._letter_bytes)
        return coordinator.result()

    def _take_keys(self, client: str, fields: dict[str, Any]) -> None:
        self._coordinator.receive_keys(client, PublicKeys.from_dict(fields))

    def _take_shares(self, client: str, fields: dict[str, Any]) -> None:
        self._coordinator.receive_shares(client, fields)

    def _take_disclosure(self, client: str, fields: dict[str, Any]) -> None:
        self._coordinator.receive_unmask(client, Disclosure.from_dict(fields))

    def _ask(self, kind: str, letters: Letters, take: Take) -> None:
        """Send each client its letter and take in the answers; who does not answer has dropped out."""
        for reply in self._send(kind, letters, lambda node: RecordDict()):
            expected = set(letters)
            for client, fields in self._answers(reply).items():
                if client in expected and self._node[client] == reply.metadata.src_node_id:
                    self._try(client, take, fields)

    def _collect(self, inboxes: Letters) -> None:
        """Send each client its inbox and the round's own message, and add up the masked vectors as they come."""
        by_node = {message.metadata.dst_node_id: message for message in self._messages}
        kind = self._messages[0].metadata.message_type
        done: list[str] = []
        seconds, sent = 0.0, 0

        def content(node: int) -> RecordDict:
            return RecordDict({STATE: by_node[node].content.array_records[STATE]})

        for reply in self._send(kind, inboxes, content):
            if reply.has_error():
                self._fail(f"node {reply.metadata.src_node_id}", str(reply.error.reason))
                continue
            told = self._report_of(reply)
            seconds, sent = seconds + told.seconds, sent + told.sent_bytes
            try:
                for client, vector in read_vectors(reply.content):
                    if client in inboxes and self._node[client] == reply.metadata.src_node_id:
                        self._coordinator.receive_masked(client, vector)
                        done.append(client)
            except ValueError as error:
                self._fail(f"node {reply.metadata.src_node_id}", str(error))
        order = {client: place for place, client in enumerate(self._node)}
        clients = tuple(sorted(set(done) - set(self._coordinator.refused), key=order.__getitem__))
        self.report = replace(self.report, clients=clients, seconds=seconds, sent_bytes=sent)

    def _send(self, kind: str, letters: Letters, content: Callable[[int], RecordDict]) -> Iterable[Message]:
        grouped: dict[int, dict[str, Mapping[str, Any]]] = {}
        for client, letter in letters.items():
            grouped.setdefault(self._node[client], {})[client] = letter
        messages = []
        for node, own in grouped.items():
            order = self.instruction
            told = Instruction(order.config, order.phase, order.round, tuple(own), order.terms)
            records = content(node)
            records[INSTRUCTION], records[LETTERS] = told.to_record(), write_letters(own)
            messages.append(self._grid.create_message(records, kind, node, str(order.round)))
        return exchange(self._grid, messages, self._timeout)

    def _answers(self, reply: Message) -> dict[str, dict[str, Any]]:
        if reply.has_error():
            self._fail(f"node {reply.metadata.src_node_id}", str(reply.error.reason))
            return {}
        self._report_of(reply)
        try:
            letters = read_letters(reply.content)
            self._letter_bytes += len(str(reply.content.config_records[LETTERS]["json"]))
            return letters
        except (ValueError, KeyError) as error:
            self._fail(f"node {reply.metadata.src_node_id}", str(error))
            return {}

    def _report_of(self, reply: Message) -> NodeReport:
        try:
            told = NodeReport.of(reply.content)
        except ValueError as error:
            self._fail(f"node {reply.metadata.src_node_id}", str(error))
            return NodeReport((), 0.0, 0)
        for client, reason in told.failures:
            if self._node.get(client) == reply.metadata.src_node_id:
                self._fail(client, reason)
        self.report = replace(self.report, retries=self.report.retries + told.retries)
        return told

    def _try(self, client: str, take: Take, fields: dict[str, Any]) -> None:
        try:
            take(client, fields)
        except ValueError as error:
            self._fail(client, str(error))

    def _fail(self, client: str, reason: str) -> None:
        self.report = replace(self.report, failures=(*self.report.failures, (client, one_line(reason))))
