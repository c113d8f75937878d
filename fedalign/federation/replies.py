"""Reading the replies of one exchange, one by one: who answered, what may be added, and what went wrong."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from flwr.app import Message

from fedalign.contribution import Contribution
from fedalign.errors import RunFailed
from fedalign.federation.messages import NodeReport
from fedalign.federation.population import Turnout
from fedalign.federation.records import decode_contribution
from fedalign.federation.untrusted import one_line

_log = logging.getLogger(__name__)

Inspect = Callable[[int, Contribution], None]
"""Refuses, by a ValueError, the sum of a number of clients' contributions."""

Take = Callable[[NodeReport, Contribution], None]
"""Adds a contribution, with the report of those that it is of, or refuses it by a ValueError."""


@dataclass
class Tally:
    """What one exchange with the clients amounted to.

    Parameters
    ----------
    asked, updates : int
        Clients that were asked, and that contributed.
    seconds : float
        Time spent in the phase's code, summed over clients.
    sent_bytes : int
        Size of the contributions, client by client.
    received_bytes : int
        Size of the states that went out, client by client.
    retries : int
        How often work was given to a worker anew, after one had died.
    turnout : Turnout
        Who of those that were asked came, where that is simulated.
    reasons : list of str
        Why clients did not contribute, where they said.
    data_s, message_s : float
        Of ``seconds``, those that clients waited for their data; and, besides, those that messages took on nodes.
    waited_s, decoded_s, added_s : float
        Seconds in which the server waited for replies, decoded them, and checked and added what they held.
    """

    asked: int = 0
    updates: int = 0
    seconds: float = 0.0
    sent_bytes: int = 0
    received_bytes: int = 0
    retries: int = 0
    turnout: Turnout = field(default_factory=Turnout)
    reasons: list[str] = field(default_factory=list)
    data_s: float = 0.0
    message_s: float = 0.0
    waited_s: float = 0.0
    decoded_s: float = 0.0
    added_s: float = 0.0

    @property
    def failed(self) -> int:
        """Clients that were asked and gave nothing."""
        return self.asked - self.updates

    @property
    def reached(self) -> int:
        """Clients that were asked and are not simulated to be missing."""
        return self.asked - len(self.turnout.absent)


class ReplyReader:
    """Reads what may be added out of the replies to one exchange, and keeps its tally.

    Parameters
    ----------
    what : str
        The exchange, as messages name it.
    asked : set of str
        The clients that were asked.
    node_of : mapping from client to node id
    tally : Tally
        Is added to.
    inspect : callable
        Refuses what may not be added.
    kind, group : str
        Type and group of the messages that went out; a node's replies have the same.
    """

    def __init__(
        self,
        what: str,
        asked: frozenset[str],
        node_of: Mapping[str, int],
        tally: Tally,
        inspect: Inspect,
        kind: str,
        group: str,
    ) -> None:
        self._what, self._asked, self._node_of, self._tally = what, asked, node_of, tally
        self._expected = (kind, group)
        self._inspect = inspect
        self._nodes = frozenset(node_of.values())
        self._heard: set[str] = set()

    def read(self, replies: Iterable[Message], take: Take) -> None:
        """Give each contribution that may be added to ``take``; of one that may not, the clients count as failed."""
        waiting = time.perf_counter()
        for reply in replies:
            came = time.perf_counter()
            self._tally.waited_s += came - waiting
            self._read(reply, take)
            waiting = time.perf_counter()
            self._tally.added_s += waiting - came
        self._tally.waited_s += time.perf_counter() - waiting
        for reason in self._tally.reasons:
            _log.warning("%s: %s", self._what, reason)
        missing = sorted(self._asked - self._heard)
        if missing:
            _log.warning("%s: nothing to add from %s", self._what, ", ".join(missing))

    def check_answered(self) -> None:
        """Refuse an exchange that reached somebody and nobody answered.

        Raises
        ------
        RunFailed
            With the first reason.
        """
        if self._tally.reached and not self._tally.updates:
            reason = self._tally.reasons[0].strip() if self._tally.reasons else "no reply in time"
            raise RunFailed(f"every client failed in {self._what}; the first said: {reason}")

    def _read(self, reply: Message, take: Take) -> None:
        tally = self._tally
        if reply.has_error():
            tally.reasons.append(one_line(reply.error.reason))
            return
        try:
            report = self._report_of(reply)
        except ValueError as error:
            tally.reasons.append(f"node {reply.metadata.src_node_id}: {one_line(error)}")
            return
        tally.seconds += report.seconds
        tally.sent_bytes += report.sent_bytes
        tally.retries += report.retries
        tally.data_s += report.data_s
        tally.message_s += report.message_s
        tally.reasons.extend(f"{client}: {reason}" for client, reason in report.failures)
        if not report.clients:
            return
        try:
            start = time.perf_counter()
            contribution = decode_contribution(reply.content)
            tally.decoded_s += time.perf_counter() - start
            self._inspect(len(report.clients), contribution)
            take(report, contribution)
        except ValueError as error:
            tally.reasons.append(f"{', '.join(report.clients)}: {one_line(error)}")
            return
        self._heard.update(report.clients)
        tally.updates += len(report.clients)

    def _report_of(self, reply: Message) -> NodeReport:
        """Return what a node says of its work; it may speak only for clients that it was asked for, once each.

        A node that spoke for more could add more, since what a sum may be grows with the clients in it.
        """
        report, node = NodeReport.of(reply.content), reply.metadata.src_node_id
        # Replies that a layer under the strategy has made of several come from no node.
        single = node in self._nodes
        if single and (reply.metadata.message_type, reply.metadata.group_id) != self._expected:
            raise ValueError("it answers another order than it was given")
        named = [*report.clients, *(client for client, _ in report.failures if single)]
        strange = [c for c in named if c not in self._asked or (single and self._node_of[c] != node)]
        if strange:
            raise ValueError(f"it answers for clients that it was not asked for: {', '.join(strange[:5])}")
        again = sorted(self._heard.intersection(report.clients))
        if again or len(set(named)) < len(named):
            raise ValueError(f"it answers twice for the same clients: {', '.join(again or sorted(set(named)))}")
        return report
