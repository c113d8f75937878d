"""A run whose nodes vanish and join between rounds, and rounds to which too few contribute."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from torch import Tensor

from fedalign.contribution import Contribution, State
from fedalign.engines.in_process import InProcessGrid
from fedalign.errors import RunFailed, UserError
from fedalign.federation import roster
from fedalign.federation.client_app import make_client_app
from fedalign.federation.conductor import Conductor
from fedalign.federation.job import Federation, Job
from fedalign.federation.messages import SAVE, TRAIN
from fedalign.federation.sampling import FractionSampler
from fedalign.federation.server_optimizer import FedAvg
from fedalign.methods.base import Memory
from fedalign.rng import Streams

from .test_conductor import Listener, values
from .toy import MEAN, VECTORS, WEIGHTS, Halfway, after_a_round, node, opener


class Flaky(InProcessGrid):
    """One client a node; a script says, at each training round, which nodes are connected from then on."""

    def __init__(
        self, phase: Halfway, script: Mapping[int, Sequence[int]], start: Sequence[int] = (1, 2, 3, 4, 5)
    ) -> None:
        contexts = {number: node(number, **{"partition-id": number - 1}) for number in range(1, 6)}
        super().__init__(make_client_app(opener([phase])), contexts)
        self.script, self.present, self.round = script, list(start), 0
        self.asked: list[list[int]] = []

    def get_node_ids(self) -> Iterable[int]:
        return list(self.present)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        given = list(messages)
        if given and given[0].metadata.message_type == TRAIN:
            self.round += 1
            self.present = list(self.script.get(self.round, self.present))
            self.asked.append(sorted(message.metadata.dst_node_id for message in given))
        for message in given:
            if message.metadata.dst_node_id in self.present:
                yield from super().send_and_receive([message], timeout=timeout)
            else:
                yield Message(Error(ErrorCode.NODE_UNAVAILABLE, "Node Unavailable"), reply_to=message)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster, "_POLL_SECONDS", 0.01)


def conduct(
    folder: Path, phase: Halfway, grid: InProcessGrid, nodes: int = 5, least: int = 1
) -> tuple[Tensor, Listener]:
    listener = Listener()
    federation = Federation(9, FractionSampler(1.0), FedAvg(1.0), MEAN, 1, 9, 9.0, 0.05, least, 2, 100.0)
    job = Job("toy", "none", [phase], federation, 5, "{}", nodes, folder, [listener], False)
    return Conductor(job, grid).run().artefacts["halfway"]["w"], listener


def moved(state: Tensor, *names: str) -> Tensor:
    """Return the weighted mean of the named clients' half steps."""
    total = sum(
        (WEIGHTS[n] * (torch.tensor(VECTORS[n], dtype=torch.float64) - state) / 2 for n in names), torch.zeros(2)
    )
    return state + total / sum(WEIGHTS[n] for n in names)


def test_nothing_changes_where_nobody_comes_or_goes(tmp_path: Path) -> None:
    phase = Halfway(rounds=2)
    state, _ = conduct(tmp_path, phase, Flaky(phase, {}))
    torch.testing.assert_close(state, after_a_round(after_a_round(torch.zeros(2, dtype=torch.float64))))


def test_a_node_that_dies_costs_its_contribution_and_is_not_asked_until_it_is_back(
    tmp_path: Path,
) -> None:
    phase = Halfway(rounds=4)
    grid = Flaky(phase, {1: [1, 3, 4, 5], 3: [1, 2, 3, 4, 5]})
    state, heard = conduct(tmp_path, phase, grid)
    expected = torch.zeros(2, dtype=torch.float64)
    for there in (["ada", "cid", "dee"], ["ada", "cid", "dee"], ["ada", "cid", "dee"], ["ada", "bob", "cid", "dee"]):
        expected = moved(expected, *there)
    torch.testing.assert_close(state, expected)
    # Round 1 still asked node 2, which died in it; it was back during round 3.
    assert grid.asked == [[1, 2, 3, 4], [1, 3, 4], [1, 3, 4], [1, 2, 3, 4]]
    assert [(report.cohort, report.failed) for report in heard.rounds[1:]] == [(4, 1), (4, 1), (4, 1), (4, 0)]


def test_a_late_node_trains_from_the_next_round_on(tmp_path: Path) -> None:
    phase = Halfway(rounds=3)
    grid = Flaky(phase, {1: [1, 2, 4]}, start=[1, 2])
    state, _ = conduct(tmp_path, phase, grid, nodes=2)
    expected = moved(torch.zeros(2, dtype=torch.float64), "ada", "bob")
    for _ in range(2):
        expected = moved(expected, "ada", "bob", "dee")
    torch.testing.assert_close(state, expected)
    assert grid.asked == [[1, 2], [1, 2, 4], [1, 2, 4]]


def test_when_all_are_gone_the_run_ends_with_what_to_do(tmp_path: Path) -> None:
    phase = Halfway(rounds=3)
    with pytest.raises(RunFailed, match=r"all 5 nodes are gone and none came back within 0.05 s; start them again"):
        conduct(tmp_path, phase, Vanishing(phase, {}))


class Vanishing(Flaky):
    """All nodes leave after the first training round."""

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        yield from super().send_and_receive(messages, timeout=timeout)
        if self.round == 1:
            self.present = []


def test_a_node_that_dies_before_a_checkpoint_does_not_end_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    phase = Halfway(rounds=2)
    _, heard = conduct(tmp_path, phase, DiesAtSave(phase, {}))
    assert len(heard.rounds) == 3
    assert "checkpoint after round 2 lacks the memory of a node's clients: node 2: Node Unavailable" in caplog.text


class DiesAtSave(Flaky):
    """A node whose machine is lost when it is asked to save."""

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        given = list(messages)
        if given and given[0].metadata.message_type == SAVE:
            self.present = [1, 3, 4, 5]
        yield from super().send_and_receive(given, timeout=timeout)


class Weak(Halfway):
    """In given rounds only some clients contribute."""

    def __init__(self, rounds: int, failing: Callable[[int], Sequence[str]]) -> None:
        super().__init__(rounds=rounds)
        self.of_round = failing

    def local(self, state: State, shard: tuple[str, Tensor], streams: Streams, memory: Memory) -> Contribution:
        self.failing = self.of_round(streams.round)
        return super().local(state, shard, streams, memory)


def test_a_round_with_too_few_contributions_is_counted_but_not_applied(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    phase = Weak(3, lambda number: ["ada", "bob"] if number == 2 else [])
    state, heard = conduct(tmp_path, phase, Flaky(phase, {}), least=3)
    torch.testing.assert_close(state, after_a_round(after_a_round(torch.zeros(2, dtype=torch.float64))))
    assert values(heard.rounds, "clients_failed") == {("halfway", 1): 0.0, ("halfway", 2): 2.0, ("halfway", 3): 0.0}
    told = (
        "2 of 4 clients contributed to round 2 of phase halfway, fewer than federation.min_clients=3: it is not applied"
    )
    assert told in caplog.text


def test_a_minimum_that_is_just_met_applies(tmp_path: Path) -> None:
    phase = Weak(1, lambda number: ["ada", "bob"])
    state, _ = conduct(tmp_path, phase, Flaky(phase, {}), least=2)
    torch.testing.assert_close(state, moved(torch.zeros(2, dtype=torch.float64), "cid", "dee"))


def test_such_rounds_in_a_row_end_the_run(tmp_path: Path) -> None:
    phase = Weak(9, lambda number: [] if number == 1 else ["ada", "bob"])
    message = "2 of 4 clients contributed to round 3 of phase halfway.*: 2 such rounds in a row end the run"
    with pytest.raises(RunFailed, match=message):
        conduct(tmp_path, phase, Flaky(phase, {}), least=3)


def test_a_round_that_is_applied_in_between_starts_the_count_anew(tmp_path: Path) -> None:
    phase = Weak(5, lambda number: ["ada", "bob"] if number % 2 else [])
    conduct(tmp_path, phase, Flaky(phase, {}), least=3)


def test_a_minimum_beyond_the_population_is_refused(tmp_path: Path) -> None:
    phase = Halfway(rounds=2)
    with pytest.raises(UserError, match=r"federation.min_clients=5: phase 'halfway' has 4 training clients; lower it"):
        conduct(tmp_path, phase, Flaky(phase, {}), least=5)
