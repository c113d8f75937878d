"""Clients side by side on a node: when, with what total, and who is blamed for what; by a clock that is not real."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import RecordDict

from fedalign.contribution import Contribution, StackedContribution, State
from fedalign.federation.batching import Batching, Choice, Trial
from fedalign.federation.desk import TrainingDesk, add_up
from fedalign.federation.messages import INSTRUCTION, STATE, TRAIN, Instruction, NodeReport, Terms
from fedalign.federation.records import decode_contribution, encode_tensors
from fedalign.federation.site import load_memory, store_memory
from fedalign.methods.base import Memory
from fedalign.privacy.base import NoPrivacy, Privacy
from fedalign.rng import Streams

from .guarded import CLIENTS, Guarded, Pull, protection, secure_sum

LOOP: Choice = "loop"
STACK: Choice = "stack"


class Clock:
    """Stands still but where work is done."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Side(Pull):
    """Also trains clients side by side, remembers rounds, and takes the time that it is told to."""

    def __init__(self, clock: Clock | None = None, alone: float = 1.0, together: float = 1.0, **more: Any) -> None:
        super().__init__(**more)
        self.clock, self.costs = clock or Clock(), (alone, together)
        self.turns: list[tuple[str, ...]] = []
        self.broken: set[str] = set()

    def stacked_size(self) -> int:
        return self.size

    def local(self, state: State, shard: str, streams: Streams, memory: Memory) -> Contribution:
        self.turns.append((shard,))
        self.clock.now += self.costs[0]
        if shard in self.broken:
            raise ArithmeticError("cannot")
        memory["rounds"] = memory.get("rounds", torch.zeros(1)) + 1
        return super().local(state, shard, streams, memory)

    def local_many(
        self, state: State, shards: Sequence[str], streams: Sequence[Streams], memories: Sequence[Memory]
    ) -> StackedContribution:
        self.turns.append(tuple(shards))
        self.clock.now += self.costs[1] * len(shards)
        if "everybody" in self.broken:
            raise MemoryError("too much")
        told = [Pull.local(self, state, *each) for each in zip(shards, streams, memories, strict=True)]
        for memory in memories:
            memory["rounds"] = memory.get("rounds", torch.zeros(1)) + 1
        failures: dict[int, Exception] = {
            i: ArithmeticError("cannot") for i, s in enumerate(shards) if s in self.broken
        }
        tensors = {"delta/w": torch.stack([each.tensors["delta/w"] for each in told])}
        return StackedContribution(tensors, [Contribution({}, each.scalars) for each in told], failures)


def batching(choose: Choice, cohort: int = 3, clock: Clock | None = None, largest: int = 100) -> Batching:
    return Batching(cohort, choose, largest, clock or Clock())


class Node:
    """A node with six clients, asked round after round."""

    def __init__(self, tmp_path: Path, phase: Side, batches: Batching | None, privacy: Privacy | None = None) -> None:
        self.phase, self.batches = phase, batches
        world = Guarded(tmp_path, privacy or NoPrivacy(), [phase])  # type: ignore[arg-type]
        self.grid, self.site = world.grid(), world.site("{}", {})
        self.context = self.grid.contexts[1]

    def desk(self, clients: Sequence[str] = CLIENTS, terms: Terms | None = None) -> TrainingDesk:
        order = Instruction("{}", 0, 1, tuple(clients), terms or Terms(1.0, 1.0, 6, 9))
        state = encode_tensors({"w": torch.zeros(self.phase.size, dtype=torch.float64)})
        message = self.grid.create_message(RecordDict({STATE: state, INSTRUCTION: order.to_record()}), TRAIN, 1, "1")
        return TrainingDesk(self.site, order, message, self.context, self.batches)

    def ask(self, clients: Sequence[str] = CLIENTS) -> tuple[Contribution, NodeReport]:
        content = add_up(self.desk(clients).told(clients))
        return decode_contribution(content), NodeReport.of(content)

    def rounds(self, client: str) -> float:
        return float(load_memory(self.context, "pull", client).get("rounds", torch.zeros(1)))


def same(one: Contribution, other: Contribution) -> None:
    assert one.scalars == pytest.approx(other.scalars)
    assert one.tensors.keys() == other.tensors.keys()
    for name in one.tensors:
        torch.testing.assert_close(one.tensors[name], other.tensors[name])


@pytest.mark.parametrize("privacy", [NoPrivacy(), protection()], ids=["open", "clipped"])
def test_a_stack_adds_up_to_what_its_clients_do(tmp_path: Path, privacy: Privacy) -> None:
    alone, together = (Node(tmp_path / kind, Side(), batching(kind), privacy) for kind in (LOOP, STACK))
    (summed, report), (expected, wanted) = together.ask(), alone.ask()
    same(summed, expected)
    assert report.clients == wanted.clients == CLIENTS
    assert report.sent_bytes == wanted.sent_bytes
    assert together.phase.turns == [("a", "b", "c"), ("d", "e", "f")]
    assert alone.phase.turns == [(client,) for client in CLIENTS]
    assert [together.rounds(client) for client in CLIENTS] == [1.0] * 6


def test_words_under_masks_come_from_stacks_too(tmp_path: Path) -> None:
    secret = secure_sum()
    alone, together = Node(tmp_path / "a", Side(), None, secret), Node(tmp_path / "b", Side(), batching(STACK), secret)
    desk, reference = together.desk(), alone.desk()
    desk.expect(CLIENTS[1:])
    for client in CLIENTS[1:]:
        assert (desk.words(client) == reference.words(client)).all()
    # Nobody is trained who is not asked for.
    assert together.phase.turns == [("b", "c", "d"), ("e", "f")]


def test_one_who_fails_is_left_out_and_forgotten_alone(tmp_path: Path) -> None:
    node = Node(tmp_path, Side(), batching(STACK))
    for client in "abc":
        store_memory(node.context, "pull", client, {"rounds": torch.ones(1)})
    node.phase.broken = {"b"}
    summed, report = node.ask()
    assert report.clients == tuple("acdef")
    assert report.failures == (("b", "ArithmeticError: cannot"),)
    assert [node.rounds(client) for client in "abc"] == [2.0, 0.0, 2.0]
    expected, _ = Node(tmp_path / "other", Side(), None).ask("acdef")
    same(summed, expected)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_one_that_must_not_be_added_is_left_out(tmp_path: Path, wrong: float) -> None:
    phase = Side(tell=lambda client, told: told.scale(wrong) if client == "e" else told)
    _, report = Node(tmp_path, phase, batching(STACK)).ask()
    assert report.clients == tuple("abcdf")
    assert [client for client, _ in report.failures] == ["e"]


def test_a_stack_that_breaks_is_trained_one_by_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Once each, with the memories that clients had before, so that only the guilty fail."""
    node = Node(tmp_path, Side(), batching(STACK, cohort=6))
    node.phase.broken = {"everybody", "d"}
    with caplog.at_level(logging.WARNING):
        summed, report = node.ask()
    assert "6 clients cannot be trained together: too much" in caplog.text
    assert node.phase.turns == [CLIENTS, *((client,) for client in CLIENTS)]
    assert report.clients == tuple("abcef")
    assert [node.rounds(client) for client in "abc"] == [1.0, 1.0, 1.0]
    same(summed, Node(tmp_path / "other", Side(), None).ask("abcef")[0])


@pytest.mark.parametrize(("choose", "tried"), [(STACK, 5), ("auto", 3)])
def test_after_three_broken_stacks_in_a_row_none_is_tried_unless_stacks_were_asked_for(
    tmp_path: Path, choose: Choice, tried: int, caplog: pytest.LogCaptureFixture
) -> None:
    """What was asked for does not depend on what happened before, so that a resumed run repeats it."""
    node = Node(tmp_path, Side(), batching(choose, cohort=6))
    node.phase.broken = {"everybody"}
    with caplog.at_level(logging.WARNING):
        told = [node.ask()[1].clients for _ in range(5)]
    assert told == [CLIENTS] * 5
    assert sum(len(turn) > 1 for turn in node.phase.turns) == tried
    assert caplog.text.count("cannot be trained together") == tried
    assert caplog.text.count("from now on all are trained one by one") == (choose == "auto")


def test_a_stack_that_is_trained_makes_up_for_broken_ones(tmp_path: Path) -> None:
    clock = Clock()
    node = Node(tmp_path, Side(clock, 0.1, 0.01), batching("auto", 6, clock))
    node.ask(), node.ask()
    for broken in ({"everybody"}, {"everybody"}, set(), {"everybody"}, {"everybody"}, set()):
        node.phase.broken = broken
        node.ask()
    assert sum(len(turn) == 6 for turn in node.phase.turns) == 7


@pytest.mark.parametrize("together", [0.9, 1.2])
def test_the_faster_way_is_found_on_the_first_clients_and_kept(tmp_path: Path, together: float) -> None:
    clock = Clock()
    node = Node(tmp_path, Side(clock, 0.1, 0.1 * together), batching("auto", 2, clock))
    totals = [node.ask("abcdef")[0] for _ in range(2)]
    first = [("a",), ("b",), ("c", "d"), ("e", "f")]
    assert node.phase.turns[:4] == first
    pairs = [("a", "b"), ("c", "d"), ("e", "f")]
    assert node.phase.turns[4:] == (pairs if together < 1 else [(client,) for client in CLIENTS])
    # Everybody was trained once a round, whatever was tried.
    assert [node.rounds(client) for client in CLIENTS] == [2.0] * 6
    for summed in totals:
        same(summed, Node(tmp_path / "other", Side(), None).ask()[0])


def test_a_slow_first_stack_is_given_a_second_chance(tmp_path: Path) -> None:
    clock = Clock()
    phase = Side(clock, 0.01, 0.05)
    node = Node(tmp_path, phase, batching("auto", 2, clock))
    node.ask("abcd")
    phase.costs = (0.01, 0.005)
    node.ask("abcd")
    assert phase.turns[2:] == [("c", "d"), ("a", "b"), ("c", "d")]


def test_a_stack_that_loses_more_than_a_start_explains_is_the_last(tmp_path: Path) -> None:
    clock = Clock()
    node = Node(tmp_path, Side(clock, 1.0, 5.0), batching("auto", 2, clock))
    node.ask()
    assert node.phase.turns == [("a",), ("b",), ("c", "d"), ("e",), ("f",)]


def test_the_first_stack_is_a_small_one() -> None:
    trial = Trial()
    sizes = []
    for _ in range(5):
        sizes.append(trial.size(100, 32))
        trial.note(sizes[-1], 0.01 * sizes[-1] ** 0.5)
    assert sizes == [1, 1, 8, 32, 32]


def test_a_second_stack_is_small_too_where_the_first_has_lost() -> None:
    """Else a short run could lose more by trying than it has time to win back."""
    sizes = {}
    for seconds in (0.004, 0.02):
        trial = Trial()
        for clients in (1, 1):
            trial.note(clients, 0.01)
        trial.note(8, 8 * seconds)
        assert trial.verdict is None
        sizes[seconds] = trial.size(100, 32)
    assert sizes == {0.004: 32, 0.02: 8}


def test_what_is_too_large_or_cannot_be_stacked_is_not_tried(tmp_path: Path) -> None:
    large = Node(tmp_path / "large", Side(), batching("auto", largest=7))
    large.ask()
    assert all(len(turn) == 1 for turn in large.phase.turns)
    forced = Node(tmp_path / "forced", Side(), batching(STACK, largest=7))
    forced.ask()
    assert len(forced.phase.turns) == 2
    single = Side()
    single.stacked_size = lambda: 0  # type: ignore[method-assign]
    Node(tmp_path / "single", single, batching(STACK)).ask()
    assert all(len(turn) == 1 for turn in single.turns)


def test_phases_and_devices_are_told_apart() -> None:
    clock = Clock()
    made, one, other = batching("auto", 2, clock), Side(size=8), Side(size=9)
    found = made.of(one, "cpu")
    assert found is not None
    for clients, seconds in ((1, 1.0), (1, 1.0), (2, 0.5)):
        found.note(clients, seconds)
    assert [made.of(one, "cpu").size(5), made.of(one, "cuda").size(5), made.of(other, "cpu").size(5)] == [2, 1, 1]  # type: ignore[union-attr]


def test_a_stack_of_which_everybody_fails_says_so_of_everybody(tmp_path: Path) -> None:
    node = Node(tmp_path, Side(), batching(STACK))
    node.phase.broken = set("abc")
    summed, report = node.ask()
    assert report.clients == tuple("def")
    assert [client for client, _ in report.failures] == list("abc")
    same(summed, Node(tmp_path / "other", Side(), None).ask("def")[0])
