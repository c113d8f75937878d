"""The strategy: who is asked, and a step that depends on the replies and on nothing else about them."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from flwr.app import ConfigRecord, Message
from flwr.serverapp import Grid
from torch import Tensor

from fedalign.contribution import Contribution, State
from fedalign.engines.in_process import InProcessGrid
from fedalign.errors import RunFailed
from fedalign.federation.directory import ClientDirectory, discover
from fedalign.federation.messages import Instruction, Terms
from fedalign.federation.records import decode_tensors, encode_tensors
from fedalign.federation.sampling import FixedSampler, FractionSampler, PoissonSampler, Sampler
from fedalign.federation.server_optimizer import FedAvg
from fedalign.federation.strategy import SumStrategy
from fedalign.methods.base import Needs, Participation, ServerOptimizer
from fedalign.metrics.record import MetricSum
from fedalign.rng import Streams

from .toy import UNSEEN, VECTORS, WEIGHTS, Halfway, after_a_round, grid_of, node, one_client_a_node, opener

AMOUNTS = {"ada": 1e16, "bob": 3.0, "cid": -1e16, "dee": 5.0}
START = torch.tensor([0.1, -0.3], dtype=torch.float64)
NODES = 5


def strategy_on(
    grid: Grid, phase: Halfway, sampler: Sampler | None = None, directory: ClientDirectory | None = None
) -> SumStrategy:
    found = discover(grid, "{}", 1, 1.0) if directory is None else directory
    chosen = FractionSampler(1.0) if sampler is None else sampler
    return SumStrategy(phase, 0, found, chosen, FedAvg(1.0).build(), "{}", seed=5)


def exchange(strategy: SumStrategy, grid: Grid, round: int = 1) -> tuple[SumStrategy, list[Message]]:
    """Ask the clients of a round to train, and return their replies."""
    arrays = encode_tensors({"w": START})
    messages = strategy.configure_train(round, arrays, ConfigRecord(), grid)
    return strategy, list(grid.send_and_receive(messages))


def step(strategy: SumStrategy, replies: Sequence[Message], round: int = 1) -> Tensor:
    arrays, _ = strategy.aggregate_train(round, replies)
    assert arrays is not None
    return decode_tensors(arrays)["w"]


def test_a_round_is_the_weighted_mean_of_the_clients() -> None:
    grid = grid_of(opener([Halfway()]))
    torch.testing.assert_close(step(*exchange(strategy_on(grid, Halfway()), grid)), after_a_round(START))


@pytest.mark.parametrize("needs", [Needs.SUM, Needs.INDIVIDUAL])
@pytest.mark.parametrize("nodes", ["one", "many"])
def test_replies_in_any_order_give_the_same_bits(needs: Needs, nodes: str) -> None:
    phase = Ordered(needs=needs)
    open_site = opener([phase])
    grid = grid_of(open_site) if nodes == "one" else one_client_a_node(open_site, (9, 3, 7, 1, 5))
    strategy, replies = exchange(strategy_on(grid, phase), grid)
    assert len(replies) == (1 if needs is Needs.SUM and nodes == "one" else 4)
    results, shuffle = set(), random.Random(0)
    for _ in range(12):
        results.add(tuple(step(strategy, replies).tolist()))
        shuffle.shuffle(replies)
    assert len(results) == 1


def test_the_order_in_which_nodes_were_found_does_not_matter() -> None:
    phase = Ordered()
    grid = one_client_a_node(opener([phase]))
    found = discover(grid, "{}", NODES, 1.0)
    results = set()
    for turn in range(NODES):
        names = [*list(found.node_of)[turn:], *list(found.node_of)[:turn]]
        turned = ClientDirectory(found.training, found.unseen, {name: found.node_of[name] for name in names})
        results.add(tuple(step(*exchange(strategy_on(grid, phase, directory=turned), grid)).tolist()))
    assert len(results) == 1


class Ordered(Halfway):
    """Steps by a number that changes with the order of the additions and of the single replies."""

    def local(self, state: State, shard: tuple[str, Tensor], streams: object, memory: object) -> Contribution:
        return Contribution({"delta/w": torch.tensor([AMOUNTS[shard[0]]] * 2, dtype=torch.float64)}, {"weight": 1.0})

    def update(self, state: State, total: Contribution, optimizer: ServerOptimizer) -> State:
        return {"w": total.tensors["delta/w"]}

    def update_each(self, state: State, replies: Sequence[Contribution], optimizer: ServerOptimizer) -> State:
        result = torch.zeros(2, dtype=torch.float64)
        for reply in replies:
            result = result / 3 + reply.tensors["delta/w"]
        return {"w": result}


@pytest.mark.parametrize("nodes", ["one", "many"])
def test_a_median_gets_every_reply_by_itself(nodes: str) -> None:
    phase = Halfway(needs=Needs.INDIVIDUAL)
    grid = grid_of(opener([phase])) if nodes == "one" else one_client_a_node(opener([phase]))
    strategy, replies = exchange(strategy_on(grid, phase), grid)
    got = step(strategy, replies)
    moves = torch.stack([(torch.tensor(vector, dtype=torch.float64) - START) / 2 for vector in VECTORS.values()])
    torch.testing.assert_close(got, START + moves.median(0).values)
    assert phase.replies == 4
    assert strategy.tally.updates == 4
    assert [item.group for item in strategy.train_sums] == ["ada", "bob", "cid", "dee"]


def test_a_node_gets_one_message_for_all_its_clients() -> None:
    grid = grid_of(opener([Halfway()]))
    strategy = strategy_on(grid, Halfway())
    (message,) = strategy.configure_train(4, encode_tensors({"w": START}), ConfigRecord(), grid)
    assert Instruction.of(message.content) == Instruction("{}", 0, 4, ("ada", "bob", "cid", "dee"), Terms(cohort=4))
    (message,) = strategy.configure_evaluate(4, encode_tensors({"w": START}), ConfigRecord(), grid)
    assert Instruction.of(message.content).clients == ("ada", "bob", "cid", "dee", "uma")


def test_cohorts_follow_from_seed_phase_and_round() -> None:
    grid = grid_of(opener([Halfway()]))
    cohorts = [strategy_on(grid, Halfway(), FixedSampler(2)).cohort(number) for number in range(1, 9)]
    again = [strategy_on(grid, Halfway(), FixedSampler(2)).cohort(number) for number in range(8, 0, -1)]
    assert cohorts == again[::-1]
    assert len({tuple(cohort) for cohort in cohorts}) > 1
    phase = Halfway()
    phase.name = "other"
    assert [strategy_on(grid, phase, FixedSampler(2)).cohort(number) for number in range(1, 9)] != cohorts


def test_a_phase_may_ask_everybody_whatever_the_sampler() -> None:
    grid = grid_of(opener([Halfway()]))
    strategy = strategy_on(grid, Halfway(participation=Participation.ALL), FixedSampler(1))
    assert strategy.cohort(1) == ["ada", "bob", "cid", "dee"]


def test_flower_s_own_loop_runs_the_strategy() -> None:
    grid = one_client_a_node(opener([Halfway()]))
    result = strategy_on(grid, Halfway()).start(grid, encode_tensors({"w": START}), num_rounds=3)
    expected = START
    for _ in range(3):
        expected = after_a_round(expected)
    torch.testing.assert_close(decode_tensors(result.arrays)["w"], expected)
    assert result.train_metrics_clientapp[3]["train/rounds/bob"] == 3.0
    distance = float((expected - torch.tensor([7.0, 7.0])).norm())
    assert result.evaluate_metrics_clientapp[3]["unseen/closeness/uma"] == pytest.approx(1 / (1 + distance))


def test_an_empty_cohort_leaves_the_state_and_reports_no_training() -> None:
    grid = grid_of(opener([Halfway()]))
    strategy = strategy_on(grid, Halfway(), PoissonSampler(1.0))
    step(*exchange(strategy, grid))
    assert len(strategy.train_sums) == 4
    strategy.sampler = PoissonSampler(1e-12)
    strategy, replies = exchange(strategy, grid, round=2)
    assert replies == []
    arrays, metrics = strategy.aggregate_train(2, replies)
    assert arrays is not None
    assert torch.equal(decode_tensors(arrays)["w"], START)
    assert metrics is None
    assert strategy.train_sums == []
    assert (strategy.tally.asked, strategy.tally.updates, strategy.tally.failed) == (0, 0, 0)


def test_clients_that_fail_are_missing_terms() -> None:
    phase = Halfway(failing=["bob"])
    grid = grid_of(opener([phase]))
    strategy, replies = exchange(strategy_on(grid, phase), grid)
    torch.testing.assert_close(step(strategy, replies), after_a_round(START, ["ada", "cid", "dee"]))
    assert (strategy.tally.asked, strategy.tally.updates, strategy.tally.failed) == (4, 3, 1)
    assert strategy.tally.reasons == ["bob: ValueError: bob has no power"]


def test_a_node_that_fails_is_missed_with_all_its_clients() -> None:
    phase = Halfway()
    contexts = [node(number, **{"partition-id": number - 1}) for number in range(1, 6)]
    grid = grid_of(opener([phase]), *contexts)
    strategy = strategy_on(grid, phase, directory=discover(grid, "{}", NODES, 1.0))
    contexts[1].node_config["broken"] = True
    strategy, replies = exchange(strategy, grid)
    torch.testing.assert_close(step(strategy, replies), after_a_round(START, ["ada", "cid", "dee"]))
    assert "no data here" in strategy.tally.reasons[0]
    assert strategy.tally.failed == 1


def test_when_all_fail_the_first_reason_is_given() -> None:
    phase = Halfway(failing=list(WEIGHTS))
    grid = grid_of(opener([phase]))
    strategy, replies = exchange(strategy_on(grid, phase), grid)
    message = "every client failed in round 1 of phase halfway; the first said: ada: ValueError: ada has no power"
    with pytest.raises(RunFailed, match=message):
        strategy.aggregate_train(1, replies)


def test_when_nobody_replies_that_is_said() -> None:
    grid = grid_of(opener([Halfway()]))
    strategy, _ = exchange(strategy_on(grid, Halfway()), grid)
    with pytest.raises(RunFailed, match="no reply in time"):
        strategy.aggregate_train(1, [])


def evaluated(phase: Halfway, grid: InProcessGrid) -> SumStrategy:
    strategy = strategy_on(grid, phase)
    messages = strategy.configure_evaluate(1, encode_tensors({"w": START}), ConfigRecord(), grid)
    strategy.aggregate_evaluate(1, grid.send_and_receive(messages))
    return strategy


def test_evaluation_reaches_everybody() -> None:
    strategy = evaluated(Halfway(), grid_of(opener([Halfway()])))
    expected = [
        MetricSum(
            "train/closeness", name, 2 / (1 + float((START - torch.tensor(vector, dtype=torch.float64)).norm())), 2.0
        )
        for name, vector in VECTORS.items()
    ]
    assert strategy.evaluation_sums[:4] == expected
    assert [item.name for item in strategy.evaluation_sums[4:]] == ["unseen/closeness"]


def test_an_evaluation_that_nobody_answers_is_an_error() -> None:
    phase = Halfway(failing=[*WEIGHTS, "uma"])
    with pytest.raises(RunFailed, match="every client failed in evaluation of phase halfway, round 1"):
        evaluated(phase, grid_of(opener([phase])))


class Counted(Halfway):
    """Adds a tensor to its evaluation."""

    def evaluate(self, state: State, shard: tuple[str, Tensor], streams: Streams) -> Contribution:
        return Contribution({"seen": shard[1]}, super().evaluate(state, shard, streams).scalars)


def test_tensors_of_an_evaluation_are_added_up() -> None:
    for grid in (grid_of(opener([Counted()])), one_client_a_node(opener([Counted()]))):
        strategy = strategy_on(grid, Counted())
        messages = strategy.configure_evaluate(1, encode_tensors({"w": START}), ConfigRecord(), grid)
        strategy.aggregate_evaluate(1, grid.send_and_receive(messages))
        everybody = torch.tensor([*VECTORS.values(), *UNSEEN.values()], dtype=torch.float64).sum(0)
        torch.testing.assert_close(strategy.evaluation_tensors["seen"], everybody)
