"""Robust aggregation: the same numbers as Flower's strategies, and one wrong client of five that does not matter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp.strategy.fedtrimmedavg import trim_mean
from flwr.serverapp.strategy.multikrum import select_multikrum
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedalign.config import options, parse, resolve
from fedalign.contribution import Contribution, State, total, weighted_delta
from fedalign.errors import UserError
from fedalign.federation.aggregation import Aggregation, Krum, Mean, Median, TrimmedMean
from fedalign.federation.directory import discover
from fedalign.federation.records import decode_tensors, encode_tensors
from fedalign.federation.sampling import FractionSampler
from fedalign.federation.server_optimizer import FedAvg
from fedalign.federation.strategy import SumStrategy
from fedalign.methods.base import Memory
from fedalign.rng import Streams
from fedalign.site import phases_of
from fedalign.template import Template

from .toy import Halfway, ToyData, grid_of, node, opener

LIMITS: dict[str, Any] = {"client_weight": None, "client_norm": None, "client_scalars": 1000}
MEDIAN, TRIMMED = Median(**LIMITS), TrimmedMean(**LIMITS, cut=0.2)
KRUM, MULTI_KRUM = Krum(**LIMITS, malicious=1, kept=1), Krum(**LIMITS, malicious=1, kept=3)
ROBUST = [MEDIAN, TRIMMED, KRUM, MULTI_KRUM]
IDS = ["median", "trimmed_mean", "krum", "multi_krum"]

ROWS = st.integers(5, 9).flatmap(
    lambda n: st.lists(
        st.lists(st.floats(-100, 100, allow_subnormal=False), min_size=3, max_size=3), min_size=n, max_size=n
    )
)


@given(ROWS, st.sampled_from([0.2, 0.25, 0.4]))
def test_the_trimmed_mean_and_the_median_are_those_of_flower_and_numpy(rows: list[list[float]], cut: float) -> None:
    given_rows = torch.tensor(rows, dtype=torch.float64)
    expected = trim_mean(given_rows.numpy(), cut)
    np.testing.assert_allclose(TrimmedMean(**LIMITS, cut=cut).centre(given_rows), expected, atol=1e-9)
    np.testing.assert_allclose(MEDIAN.centre(given_rows), np.median(given_rows.numpy(), axis=0), atol=1e-12)


@pytest.mark.parametrize("kept", [1, 3])
@pytest.mark.parametrize("seed", range(20))
def test_krum_keeps_whom_flower_keeps(kept: int, seed: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(7 + seed % 4, 6))
    contents = [RecordDict({"arrays": ArrayRecord({"w": Array(row)})}) for row in rows]
    chosen = select_multikrum(contents, num_malicious_nodes=2, num_nodes_to_select=kept)
    expected = np.mean([content.array_records["arrays"]["w"].numpy() for content in chosen], axis=0)
    np.testing.assert_allclose(Krum(**LIMITS, malicious=2, kept=kept).centre(torch.from_numpy(rows)), expected)


@given(ROWS, st.randoms())
def test_the_order_of_clients_does_not_matter(rows: list[list[float]], random: Any) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)
    for aggregation in (MEDIAN, TRIMMED):
        one, other = (aggregation.centre(torch.tensor(each, dtype=torch.float64)) for each in (rows, shuffled))
        torch.testing.assert_close(one, other)


@given(st.floats(0.1, 50), st.floats(1e-3, 1e9))
def test_a_weight_that_is_claimed_counts_for_nothing(weight: float, claimed: float) -> None:
    """A client that multiplies its contribution, weight and all, is where it was."""
    honest = [
        weighted_delta({"w": torch.zeros(2)}, {"w": torch.tensor([float(n), -float(n)])}, weight) for n in range(5)
    ]
    louder = [honest[0].scale(claimed), *honest[1:]]
    for aggregation in ROBUST:
        quiet = aggregation.combine(honest, total(honest))
        loud = aggregation.combine(louder, total(louder))
        torch.testing.assert_close(quiet.tensors["delta/w"], loud.tensors["delta/w"], rtol=1e-4, atol=1e-4)
        assert quiet.scalars["weight"] == loud.scalars["weight"] == 5.0


class Attacked(Halfway):
    """Five clients move to nearly the same place, and one of them does what a malicious one would."""

    def __init__(self, attack: str, bad: str = "bad") -> None:
        super().__init__()
        self.attack, self.bad = attack, bad

    def local(self, state: State, shard: tuple[str, Tensor], streams: Streams, memory: Memory) -> Contribution:
        client, vector = shard
        change = weighted_delta(state, {"w": vector}, 1.0)
        if client != self.bad:
            return change
        if self.attack == "far":
            return Contribution({"delta/w": change.tensors["delta/w"] * -1e6}, {"weight": 1.0})
        if self.attack == "weight":
            return Contribution({"delta/w": torch.full((2,), -1e12, dtype=torch.float64)}, {"weight": 1e12})
        return Contribution({"delta/w": torch.full((2,), 1e3, dtype=torch.float64)}, {"weight": 0.0})


NAMES = ("a", "b", "bad", "c", "d")


class FiveClients(ToyData):
    def __init__(self) -> None:
        super().__init__(NAMES, ())

    def shard(self, client: str) -> tuple[str, Tensor]:
        return client, torch.tensor([1.0, 2.0], dtype=torch.float64) + 0.01 * NAMES.index(client)


def a_round(aggregation: Aggregation, attack: str, nodes: int = 5) -> tuple[SumStrategy, Tensor]:
    phase = Attacked(attack)
    contexts = [node(number + 1, **{"partition-id": number}) for number in range(5)] if nodes == 5 else [node(1)]
    grid = grid_of(opener([phase], FiveClients()), *contexts)
    strategy = SumStrategy(
        phase, 0, discover(grid, "{}", nodes, 1.0), FractionSampler(1.0), FedAvg(1.0).build(), "{}", 5
    )
    strategy.aggregation = aggregation
    start = encode_tensors({"w": torch.zeros(2, dtype=torch.float64)})
    messages = strategy.configure_train(1, start, ConfigRecord(), grid)
    arrays, _ = strategy.aggregate_train(1, grid.send_and_receive(messages))
    assert arrays is not None
    return strategy, decode_tensors(arrays)["w"]


RIGHT = torch.tensor([1.0, 2.0], dtype=torch.float64)


@pytest.mark.parametrize("attack", ["far", "weight", "none at all"])
@pytest.mark.parametrize("aggregation", ROBUST, ids=IDS)
@pytest.mark.parametrize("nodes", [1, 5])
def test_one_malicious_client_of_five_does_not_matter(aggregation: Aggregation, attack: str, nodes: int) -> None:
    _, state = a_round(aggregation, attack, nodes)
    assert float((state - RIGHT).norm()) < 0.1


@pytest.mark.parametrize("attack", ["far", "weight", "none at all"])
def test_it_ruins_a_mean(attack: str) -> None:
    _, state = a_round(Mean(**LIMITS), attack)
    assert float((state - RIGHT).norm()) > 1


@pytest.mark.parametrize("attack", ["far", "weight", "none at all"])
def test_a_bound_on_weight_and_norm_saves_the_mean_too(attack: str) -> None:
    strategy, state = a_round(Mean(client_weight=1.0, client_norm=5.0, client_scalars=1000), attack)
    assert float((state - RIGHT).norm()) < 0.1
    assert strategy.tally.failed == 1
    (reason,) = strategy.tally.reasons
    assert reason.startswith(("bad: a change of norm", "bad: a weight of 1e+12 over 1 clients"))


def test_a_phase_that_knows_its_weights_holds_clients_to_them() -> None:
    class Uniform(Attacked):
        client_weight = 1.0

    phase = Uniform("weight")
    contribution = phase.local({"w": torch.zeros(2, dtype=torch.float64)}, ("bad", RIGHT), Streams(0), {})
    with pytest.raises(ValueError, match="a weight of 1e"):
        Mean(**LIMITS).check(1, contribution, phase.client_weight)
    Mean(**LIMITS).check(1, contribution, None)


@pytest.mark.parametrize("name", ["pluralllm", "fedavg_bt", "fedvpa", "emdpo"])
def test_methods_with_uniform_weights_know_them(name: str) -> None:
    for weight, known in (("uniform", 1.0), ("judgments" if name != "pluralllm" else "questions", None)):
        config = parse(resolve([f"method={name}", f"method.weight={weight}"]))
        learning = [phase for phase in phases_of(config, {}) if phase.rounds > 1]
        assert learning
        assert known in {phase.client_weight for phase in learning}


@pytest.mark.parametrize(("aggregation", "fewest"), list(zip(ROBUST, [3, 5, 5, 5], strict=True)), ids=IDS)
def test_a_round_with_too_few_clients_for_the_promise_is_refused(aggregation: Aggregation, fewest: int) -> None:
    assert aggregation.fewest == fewest
    aggregation.check_cohort(fewest)
    with pytest.raises(UserError, match=f"rounds of {fewest - 1} clients are too few .* which needs {fewest}"):
        aggregation.check_cohort(fewest - 1)


def test_a_round_to_which_too_few_came_is_not_applied() -> None:
    class Shy(Attacked):
        def local(self, state: State, shard: tuple[str, Tensor], streams: Streams, memory: Memory) -> Contribution:
            if shard[0] in ("a", "b"):
                raise ValueError("not today")
            return super().local(state, shard, streams, memory)

    grid = grid_of(opener([Shy("far")], FiveClients()))
    strategy = SumStrategy(
        Shy("far"), 0, discover(grid, "{}", 1, 1.0), FractionSampler(1.0), FedAvg(1.0).build(), "{}", 5
    )
    strategy.aggregation = KRUM
    messages = strategy.configure_train(1, encode_tensors({"w": RIGHT}), ConfigRecord(), grid)
    arrays, _ = strategy.aggregate_train(1, grid.send_and_receive(messages))
    assert arrays is not None
    assert torch.equal(decode_tensors(arrays)["w"], RIGHT)


def test_one_reply_for_several_clients_is_no_single_reply() -> None:
    grid = grid_of(opener([Attacked("far")], FiveClients()))
    one = SumStrategy(
        Attacked("far"), 0, discover(grid, "{}", 1, 1.0), FractionSampler(1.0), FedAvg(1.0).build(), "{}", 5
    )
    start = encode_tensors({"w": torch.zeros(2, dtype=torch.float64)})
    together: Sequence[Message] = list(grid.send_and_receive(one.configure_train(1, start, ConfigRecord(), grid)))
    one.aggregation = MEDIAN
    assert len(one.configure_train(1, start, ConfigRecord(), grid)) == 5
    with pytest.raises(Exception, match="one reply for several clients"):
        one.aggregate_train(1, together)


def test_sums_that_are_no_changes_of_a_model_are_refused() -> None:
    for aggregation in ROBUST:
        aggregation.check_phase("p", Template({"delta/w": (2,)}))
        with pytest.raises(UserError, match="phase 'p' adds up 'sums'"):
            aggregation.check_phase("p", Template({"delta/w": (2,), "sums": (3,)}))
        with pytest.raises(UserError, match="names depend on the data"):
            aggregation.check_phase("p", None)
    Mean(**LIMITS).check_phase("p", None)


@pytest.mark.parametrize(
    ("name", "value"), [("metric|a|g|n", -1.0), ("metric|a|g|n", 1e-12), ("metric|a|g|n", 1e16), ("weight", 3.0)]
)
def test_numbers_that_no_client_has_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=r"which is no count|a weight of 3 over 2 clients"):
        Mean(1.0, None, 10).check(2, Contribution(scalars={name: value}), None)


@pytest.mark.parametrize("value", [1e31, -1e31, float("nan"), float("inf")])
def test_numbers_that_sums_could_not_hold_are_refused(value: float) -> None:
    for bad in (Contribution({"a": torch.tensor([0.0, value])}), Contribution(scalars={"a": value})):
        with pytest.raises(ValueError, match=r"a: (is|holds)"):
            Mean(None, None, 10).check(2, bad, None)


def test_a_flood_of_names_is_refused() -> None:
    flood = Contribution(scalars={f"metric|a|{n}|sum": 0.0 for n in range(21)})
    with pytest.raises(ValueError, match="21 named numbers of 2 clients"):
        Mean(None, None, 10).check(2, flood, None)
    Mean(None, None, 11).check(2, flood, None)


@pytest.mark.parametrize("name", options()["federation/aggregation"])
def test_every_aggregation_builds(name: str) -> None:
    built = parse(resolve([f"federation/aggregation={name}", "federation.aggregation.client_norm=3"])).federation
    assert built.aggregation.client_norm == 3
    assert built.aggregation.individual is (name != "mean")
