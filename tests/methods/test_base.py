"""What a phase does unless it says otherwise."""

from __future__ import annotations

import pytest
import torch

from fedalign.contribution import Contribution, State, total, weighted_delta
from fedalign.federation.server_optimizer import FedAvg
from fedalign.methods.base import Artefacts, Memory, Needs, Participation, Phase
from fedalign.metrics.record import MetricSum
from fedalign.rng import Streams


class Plain(Phase[None]):
    """A phase with nothing of its own."""

    name = "plain"
    rounds = 1

    def initial(self, streams: Streams, artefacts: Artefacts) -> State:
        return {"w": torch.zeros(2)}

    def local(self, state: State, shard: None, streams: Streams, memory: Memory) -> Contribution:
        return Contribution()

    def evaluate(self, state: State, shard: None, streams: Streams) -> Contribution:
        return Contribution()


def test_it_needs_the_sum_of_a_sample() -> None:
    assert (Plain().needs, Plain().participation) == (Needs.SUM, Participation.SAMPLED)


def test_the_update_is_one_server_step_along_the_mean_delta() -> None:
    state = {"w": torch.tensor([1.0, 2.0]), "frozen": torch.tensor([5.0])}
    replies = [
        weighted_delta({"w": state["w"]}, {"w": state["w"] + moved}, weight)
        for moved, weight in ((torch.tensor([1.0, 0.0]), 3.0), (torch.tensor([0.0, 4.0]), 1.0))
    ]
    updated = Plain().update(state, total(replies), FedAvg(0.5).build())
    assert updated["w"].tolist() == [1.0 + 0.5 * 0.75, 2.0 + 0.5 * 1.0]
    assert updated["frozen"].tolist() == [5.0]
    assert state["w"].tolist() == [1.0, 2.0]


def test_groups_count_equally_whatever_their_size() -> None:
    sums = [MetricSum("a", "g", 1.0, 4.0), MetricSum("a", "h", 300.0, 400.0), MetricSum("b", "g", 6.0, 2.0)]
    assert Plain().summarise(sums, {}) == {"a": 0.5, "b": 3.0}


def test_single_replies_are_refused_by_name() -> None:
    with pytest.raises(TypeError, match="phase plain does not say"):
        Plain().update_each({}, [], FedAvg(1.0).build())
