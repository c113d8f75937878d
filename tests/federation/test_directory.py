"""Finding out which clients live on which node, also when nodes come late, twice, broken or never."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from fedalign.errors import RunFailed
from fedalign.federation import directory
from fedalign.federation.directory import ClientDirectory, discover, wait_for_nodes

from .toy import Halfway, ReorderingGrid, ToyData, grid_of, node, one_client_a_node, opener

OPEN = opener([Halfway()])


class LateGrid:
    """A grid whose nodes appear one poll after another."""

    def __init__(self, polls: Sequence[Sequence[int]]) -> None:
        self.polls = itertools.chain(polls, itertools.repeat(polls[-1]))
        self.asked = 0

    def get_node_ids(self) -> Sequence[int]:
        self.asked += 1
        return next(self.polls)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "_POLL_SECONDS", 0.001)
    monkeypatch.setattr(directory, "_SETTLE_SECONDS", 0.05)


def test_it_waits_for_the_nodes_it_was_promised() -> None:
    grid = LateGrid([[], [7], [7], [9, 7], [9, 7, 8]])
    assert wait_for_nodes(grid, 3, timeout=5) == [7, 8, 9]
    assert grid.asked == 5


def test_without_a_promise_it_waits_until_no_more_come() -> None:
    grid = LateGrid([[], [7], [7, 8]])
    assert wait_for_nodes(grid, 0, timeout=5) == [7, 8]
    assert grid.asked > 3


@pytest.mark.parametrize(
    ("polls", "expected", "message"),
    [
        ([[7]], 2, "1 of 2 nodes connected within 0.02 s; start the others"),
        ([[]], 0, "0 of any nodes connected within 0.02 s"),
    ],
)
def test_it_does_not_wait_for_ever(polls: list[list[int]], expected: int, message: str) -> None:
    with pytest.raises(RunFailed, match=message):
        wait_for_nodes(LateGrid(polls), expected, timeout=0.02)


def test_clients_are_sorted_by_name_whatever_their_nodes_are_called() -> None:
    for ids in ((1, 2, 3, 4, 5), (50, 40, 30, 20, 10)):
        found = discover(one_client_a_node(OPEN, ids), "", 5, 1.0)
        assert found.training == ["ada", "bob", "cid", "dee"]
        assert found.unseen == ["uma"]
        assert found.node_of == dict(zip(("ada", "bob", "cid", "dee", "uma"), ids, strict=True))


def test_the_order_of_answers_does_not_matter() -> None:
    straight = discover(one_client_a_node(OPEN), "", 5, 1.0)
    turned = discover(ReorderingGrid(one_client_a_node(OPEN), lambda replies: replies[::-1]), "", 5, 1.0)
    assert (turned.training, turned.unseen, turned.node_of) == (straight.training, straight.unseen, straight.node_of)


def test_one_node_may_host_everybody() -> None:
    assert set(discover(grid_of(OPEN), "", 1, 1.0).node_of.values()) == {1}


def test_a_client_on_two_nodes_is_an_error() -> None:
    grid = grid_of(OPEN, node(1, **{"partition-id": 2}), node(2, **{"partition-id": 2}))
    with pytest.raises(RunFailed, match="client cid is on two nodes"):
        discover(grid, "", 2, 1.0)


def test_a_federation_needs_somebody_to_train() -> None:
    grid = grid_of(opener([Halfway()], ToyData(training=())))
    with pytest.raises(RunFailed, match="no node hosts a training client"):
        discover(grid, "", 1, 1.0)


def test_a_node_that_cannot_start_says_why() -> None:
    grid = grid_of(OPEN, node(1, **{"partition-id": 0}), node(2, broken=True))
    with pytest.raises(RunFailed, match=r"node 2 cannot start: .*no data here"):
        discover(grid, "", 2, 1.0)


def test_a_node_that_does_not_answer_is_missed() -> None:
    grid = ReorderingGrid(one_client_a_node(OPEN), lambda replies: replies[:3])
    with pytest.raises(RunFailed, match="3 of 5 nodes described themselves within 1 s"):
        discover(grid, "", 5, 1.0)


def test_grouping_by_node_keeps_the_order_of_clients() -> None:
    found = ClientDirectory(["a", "b", "c", "d"], [], {"a": 2, "b": 1, "c": 2, "d": 1})
    assert found.by_node(["d", "c", "b", "a"]) == {1: ["d", "b"], 2: ["c", "a"]}
    assert found.by_node(["c"]) == {2: ["c"]}
    assert found.by_node([]) == {}
