"""Nodes that vanish, come back, come late, or never come back, while a run goes on."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import pytest
from flwr.app import Message

from fedalign.engines.in_process import InProcessGrid
from fedalign.errors import RunFailed
from fedalign.federation import roster as module
from fedalign.federation.client_app import make_client_app
from fedalign.federation.directory import ClientDirectory, discover
from fedalign.federation.roster import Roster

from .toy import Halfway, ToyData, node, opener

OPEN = opener([Halfway()])


class Connected(InProcessGrid):
    """A grid of one client a node, of which some are connected; others do not answer."""

    def __init__(self, present: Sequence[int]) -> None:
        contexts = {number: node(number, **{"partition-id": number - 1}) for number in range(1, 6)}
        super().__init__(make_client_app(OPEN), contexts)
        self.present = list(present)

    def get_node_ids(self) -> Iterable[int]:
        return list(self.present)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        there = [message for message in messages if message.metadata.dst_node_id in self.present]
        return super().send_and_receive(there, timeout=timeout)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.01)


def roster(grid: Connected, expected: int, fixed: bool = False) -> Roster:
    return Roster(grid, "{}", discover(grid, "{}", expected, 1.0), 0.05, fixed)


def test_who_vanishes_is_away_until_back(caplog: pytest.LogCaptureFixture) -> None:
    grid = Connected([1, 2, 3])
    known = roster(grid, 3)
    grid.present = [1, 3]
    for _ in range(2):
        known.refresh()
        assert known.away == {2}
    grid.present = [1, 2, 3]
    known.refresh()
    assert known.away == frozenset()
    assert [r.getMessage() for r in caplog.records] == [
        "node 2 (bob) is gone; the run goes on without it",
        "node 2 (bob) is back",
    ]
    assert known.directory.training == ["ada", "bob", "cid"]


def test_who_comes_late_is_taken_in() -> None:
    grid = Connected([1, 2])
    known = roster(grid, 2)
    grid.present = [1, 2, 4, 5]
    known.refresh()
    assert known.directory.training == ["ada", "bob", "dee"]
    assert known.directory.unseen == ["uma"]
    assert known.directory.node_of == {"ada": 1, "bob": 2, "dee": 4, "uma": 5}


def test_under_a_guarantee_nobody_is_taken_in_and_the_log_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    grid = Connected([1, 2])
    known = roster(grid, 2, fixed=True)
    grid.present = [1, 2, 4]
    for _ in range(2):
        known.refresh()
    assert known.directory.training == ["ada", "bob"]
    assert caplog.text.count("node 4 came late and is not taken in: the guarantee is for the clients of the start") == 1


def test_a_restarted_node_with_a_new_id_takes_its_clients_over() -> None:
    grid = Connected([1, 2])
    known = roster(grid, 2)
    grid.contexts[9] = node(9, **{"partition-id": 1})
    grid.present = [1, 9]
    known.refresh()
    assert known.directory.node_of == {"ada": 1, "bob": 9}
    assert known.away == frozenset()


def test_a_late_node_with_clients_of_another_is_not_taken_in(caplog: pytest.LogCaptureFixture) -> None:
    grid = Connected([1, 2])
    known = roster(grid, 2)
    grid.contexts[9] = node(9, **{"partition-id": 1})
    grid.present = [1, 2, 9]
    for _ in range(2):
        known.refresh()
    assert known.directory.node_of == {"ada": 1, "bob": 2}
    assert caplog.text.count("client bob of node 9 is on another node") == 1


def test_a_late_node_that_cannot_start_is_not_taken_in(caplog: pytest.LogCaptureFixture) -> None:
    grid = Connected([1, 2])
    known = roster(grid, 2)
    grid.contexts[9] = node(9, **{"partition-id": "none"})
    grid.present = [1, 2, 9]
    known.refresh()
    assert "a node that came late is not taken in: node 9 cannot start: ValueError" in caplog.text


def test_it_waits_for_somebody_to_come_back_but_not_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    grid = Connected([1, 2])
    known = roster(grid, 2)
    grid.present = []
    with caplog.at_level(logging.WARNING), pytest.raises(RunFailed, match="all 2 nodes are gone and none came back"):
        known.refresh()
    assert "waiting 0.05 s" in caplog.text


def test_a_node_that_joins_leaves_the_others_stages_alone() -> None:
    before = ClientDirectory.of(ToyData(("ada",), ()).clients, {"ada": 1})
    staged = ClientDirectory(before.training, before.unseen, before.node_of, {"ada": ("sft",)})
    after = staged.joined(ToyData(("bob",), ("uma",)).clients, 2)
    assert (after.training, after.unseen) == (["ada", "bob"], ["uma"])
    assert after.stages == {"ada": ("sft",)}
