"""Replies come one by one, whatever grid they come over."""

from __future__ import annotations

import time
from collections.abc import Iterable

import pytest
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedalign.engines.in_process import InProcessGrid
from fedalign.federation import exchange as module
from fedalign.federation.exchange import exchange

from .toy import Halfway, one_client_a_node, opener


class Polled(Grid):
    """Looks like one of Flower's grids: replies to some messages are there at the first look, others later or never."""

    def __init__(self, grid: InProcessGrid, late: dict[int, int]) -> None:
        self.grid, self.late, self.looks = grid, late, 0
        self.given: dict[str, Message] = {}

    def set_run(self, run: object) -> None: ...

    @property
    def run(self) -> object:
        return None

    def create_message(self, *arguments: object, **named: object) -> Message:
        return self.grid.create_message(*arguments, **named)  # type: ignore[arg-type]

    def get_node_ids(self) -> Iterable[int]:
        return self.grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> list[str | None]:
        sent = list(messages)
        self.given = {m.metadata.message_id: m for m in sent if self.late.get(m.metadata.dst_node_id, 0) >= 0}
        return [m.metadata.message_id if m.metadata.message_id in self.given else None for m in sent]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        self.looks += 1
        ready = [n for n in message_ids if self.late.get(self.given[n].metadata.dst_node_id, 0) < self.looks]
        return list(self.grid.pull_messages(self.grid.push_messages(self.given.pop(n) for n in ready)))

    def send_and_receive(self, messages: object, *, timeout: float | None = None) -> list[Message]:
        raise AssertionError("this one holds every reply until the last is there")


def asked(grid: Grid) -> list[Message]:
    return [grid.create_message(RecordDict(), "query.unknown", node, "1") for node in grid.get_node_ids()]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_WAIT", 0.001)


def grid(late: dict[int, int]) -> Polled:
    return Polled(one_client_a_node(opener([Halfway()])), late)


def test_replies_are_yielded_as_they_come() -> None:
    polled = grid({12: 3, 15: 1})
    nodes, looks = [], []
    for reply in exchange(polled, asked(polled), timeout=10.0):
        nodes.append(reply.metadata.src_node_id)
        looks.append(polled.looks)
    assert sorted(nodes[:3]) == [11, 13, 14]
    assert nodes[3:] == [15, 12]
    assert looks == [1, 1, 1, 2, 4]


def test_who_does_not_answer_in_time_is_left_out() -> None:
    polled = grid({12: 10**9})
    began = time.monotonic()
    replies = list(exchange(polled, asked(polled), timeout=0.05))
    assert len(replies) == 4
    assert time.monotonic() - began < 5


def test_a_message_that_could_not_be_sent_is_not_waited_for() -> None:
    polled = grid({12: -1})
    assert len(list(exchange(polled, asked(polled), timeout=None))) == 4


def test_a_grid_of_ours_is_read_lazily() -> None:
    own = one_client_a_node(opener([Halfway()]))
    sent: list[int] = []

    def messages() -> Iterable[Message]:
        for message in asked(own):
            sent.append(message.metadata.dst_node_id)
            yield message

    replies = exchange(own, messages(), timeout=None)
    assert sent == []
    next(replies)
    assert sent == [11]
