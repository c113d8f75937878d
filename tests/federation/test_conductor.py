"""The loop of a run on a federation that can be followed by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, RecordDict

from fedalign.contribution import Contribution, State
from fedalign.engines.in_process import InProcessGrid
from fedalign.errors import RunFailed, UserError
from fedalign.federation.checkpoint import BEST, NEWEST, Checkpoint
from fedalign.federation.client_app import make_client_app
from fedalign.federation.conductor import Conductor
from fedalign.federation.job import Federation, Job, Outcome
from fedalign.federation.observer import PhasePlan, RoundReport
from fedalign.federation.sampling import FixedSampler, FractionSampler, PoissonSampler, Sampler
from fedalign.federation.server_app import make_server_app
from fedalign.federation.server_optimizer import FedAvg, FedAvgM, ServerOptimizerSpec
from fedalign.methods.base import Artefacts, Memory, Participation, Phase
from fedalign.metrics.record import MetricSum, encode
from fedalign.rng import Streams

from .toy import MEAN, Halfway, after_a_round, node, opener

EVERYBODY, PLAIN = FractionSampler(1.0), FedAvg(1.0)


@dataclass
class Listener:
    """Keeps what it hears."""

    plans: list[tuple[Sequence[PhasePlan], tuple[str, int] | None]] = field(default_factory=list)
    rounds: list[RoundReport] = field(default_factory=list)

    def run_started(self, plan: Sequence[PhasePlan], resumed_after: tuple[str, int] | None) -> None:
        self.plans.append((plan, resumed_after))

    def round_ended(self, report: RoundReport) -> None:
        self.rounds.append(report)

    def run_ended(self) -> None:
        raise AssertionError("whoever opened the observers ends them")


class GoesOn(Halfway):
    """Starts from where the phase before ended, and asks everybody."""

    name = "goes_on"

    def initial(self, streams: Streams, artefacts: Artefacts) -> State:
        return {"w": artefacts["halfway"]["w"]}


@dataclass
class World:
    """A job on a grid of one node, with memories below a folder."""

    folder: Path
    phases: Sequence[Phase[Any]]
    sampler: Sampler = EVERYBODY
    server: ServerOptimizerSpec = PLAIN
    evaluate_every: int = 2
    checkpoint_every: int = 2
    selection: str = "train/closeness"
    saves_memories: bool = True
    listener: Listener = field(default_factory=Listener)

    def job(self, resume: bool = False) -> Job:
        federation = Federation(
            9, self.sampler, self.server, MEAN, self.evaluate_every, self.checkpoint_every, 9.0, 1.0, 1, 3, 100.0
        )
        return Job("toy", self.selection, self.phases, federation, 5, "{}", 1, self.folder, [self.listener], resume)

    def grid(self) -> InProcessGrid:
        path = self.folder / "clients" if self.saves_memories else None
        return InProcessGrid(make_client_app(opener(self.phases), path), {1: node(1)})

    def run(self, resume: bool = False) -> Outcome:
        return Conductor(self.job(resume), self.grid()).run()


def values(reports: Sequence[RoundReport], name: str, group: str | None = None) -> dict[tuple[str, int], float]:
    return {(r.phase, r.round): m.value for r in reports for m in r.metrics if (m.name, m.group) == (name, group)}


def test_phases_run_in_order_and_hand_their_states_on(tmp_path: Path) -> None:
    world = World(tmp_path, [Halfway(rounds=3), GoesOn(rounds=2)])
    outcome = world.run()
    expected = torch.zeros(2, dtype=torch.float64)
    for _ in range(3):
        expected = after_a_round(expected)
    torch.testing.assert_close(outcome.artefacts["halfway"]["w"], expected)
    for _ in range(2):
        expected = after_a_round(expected)
    torch.testing.assert_close(outcome.artefacts["goes_on"]["w"], expected)


def test_observers_hear_the_plan_and_every_round_from_zero(tmp_path: Path) -> None:
    world = World(tmp_path, [Halfway(rounds=3), GoesOn(rounds=0), Third(rounds=1)])
    world.run()
    plan = [PhasePlan("halfway", 3), PhasePlan("goes_on", 0), PhasePlan("third", 1)]
    assert world.listener.plans == [(plan, None)]
    heard = [(report.phase, report.round) for report in world.listener.rounds]
    assert heard == [("halfway", n) for n in range(4)] + [("goes_on", 0), ("third", 0), ("third", 1)]


class Third(GoesOn):
    """Another phase."""

    name = "third"


def test_evaluation_comes_before_the_first_round_at_its_period_and_at_the_end(tmp_path: Path) -> None:
    world = World(tmp_path, [Halfway(rounds=5), GoesOn(rounds=1)])
    world.run()
    scopes = {
        (report.phase, report.round): {m.scope for m in report.metrics if m.name == "unseen/closeness"}
        for report in world.listener.rounds
    }
    assert scopes == {
        **{("halfway", n): {"eval"} if n in (0, 2, 4, 5) else set() for n in range(6)},
        ("goes_on", 0): {"eval"},
        ("goes_on", 1): {"test"},
    }


def test_metrics_of_a_round(tmp_path: Path) -> None:
    world = World(tmp_path, [Halfway(rounds=2)])
    world.run()
    reports = world.listener.rounds
    assert values(reports, "train/rounds", "bob") == {("halfway", 1): 1.0, ("halfway", 2): 2.0}
    assert values(reports, "train/rounds") == {("halfway", 1): 1.0, ("halfway", 2): 2.0}
    state = after_a_round(after_a_round(torch.zeros(2, dtype=torch.float64)))
    expected = 1 / (1 + float((state - torch.tensor([7.0, 7.0])).norm()))
    assert values(reports, "unseen/closeness", "uma")[("halfway", 2)] == pytest.approx(expected)
    (mean,) = [m for m in reports[-1].metrics if m.name == "train/closeness" and m.group is None]
    assert mean.n == 4.0
    by_group = [m.value for m in reports[-1].metrics if m.name == "train/closeness" and m.group is not None]
    assert mean.value == pytest.approx(sum(by_group) / 4)


def test_a_report_speaks_of_the_clients_that_trained(tmp_path: Path) -> None:
    world = World(tmp_path, [Halfway(rounds=2, failing=["bob"])], evaluate_every=1)
    world.run()
    reports = world.listener.rounds
    assert [(report.cohort, report.failed) for report in reports] == [(0, 0), (4, 1), (4, 1)]
    assert values(reports, "clients_failed") == {("halfway", 1): 1.0, ("halfway", 2): 1.0}


def test_counters_add_up_over_the_run(tmp_path: Path) -> None:
    world = World(tmp_path, [Halfway(rounds=2)], sampler=FixedSampler(3), evaluate_every=2)
    outcome = world.run()
    assert outcome.counters["rounds"] == 2
    assert outcome.counters["client_updates"] == 6
    # Two rounds to three clients and evaluations before and after to all five, 16 bytes each.
    assert outcome.counters["down_bytes"] == 16 * (2 * 3 + 2 * 5)
    # A delta and its weight and two numbers of a metric from each; two numbers from each evaluation.
    assert outcome.counters["up_bytes"] == (16 + 3 * 8) * 6 + 2 * 8 * 10
    assert outcome.counters["train_s"] >= outcome.counters["update_s"] > 0


def test_an_empty_cohort_is_a_round_without_training(tmp_path: Path) -> None:
    world = World(tmp_path, [Halfway(rounds=2)], sampler=PoissonSampler(1e-12))
    outcome = world.run()
    assert outcome.artefacts["halfway"]["w"].tolist() == [0.0, 0.0]
    assert values(world.listener.rounds, "train/rounds") == {}
    assert values(world.listener.rounds, "cohort") == {("halfway", 1): 0.0, ("halfway", 2): 0.0}


def test_everybody_takes_part_where_a_phase_says_so(tmp_path: Path) -> None:
    world = World(tmp_path, [Halfway(rounds=1, participation=Participation.ALL)], sampler=FixedSampler(1))
    world.run()
    assert values(world.listener.rounds, "cohort") == {("halfway", 1): 4.0}


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_stopped_after_any_round_it_goes_on_to_the_same_end(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases = [Halfway(rounds=3), GoesOn(rounds=2)]
    straight = World(tmp_path / "straight", phases, FixedSampler(2), FedAvgM(1.0, 0.9)).run()
    with monkeypatch.context() as patch:
        count = iter(range(99))
        train = Conductor._train

        def mortal(conductor: Conductor, *arguments: Any) -> Any:
            if next(count) == number:
                raise KeyboardInterrupt
            return train(conductor, *arguments)

        patch.setattr(Conductor, "_train", mortal)
        stopped = World(tmp_path / "stopped", phases, FixedSampler(2), FedAvgM(1.0, 0.9), checkpoint_every=1)
        if number < 5:
            with pytest.raises(KeyboardInterrupt):
                stopped.run()
        else:
            stopped.run()
    stopped.listener = Listener()
    resumed = stopped.run(resume=True)
    for phase, state in straight.artefacts.items():
        assert torch.equal(resumed.artefacts[phase]["w"], state["w"])
    assert stopped.listener.plans[0][1] == (("halfway", number) if number <= 3 else ("goes_on", number - 3))
    assert resumed.counters["client_updates"] == straight.counters["client_updates"]
    heard = [(report.phase, report.round) for report in stopped.listener.rounds if report.round]
    assert heard == [*(("halfway", n) for n in (1, 2, 3)), *(("goes_on", n) for n in (1, 2))][number:]


def test_the_best_checkpoint_is_that_of_the_highest_selection_value(tmp_path: Path) -> None:
    """The unseen client lies far away: closeness to it falls, to the training clients it rises first."""
    for selection in ("train/closeness", "unseen/closeness"):
        folder = tmp_path / selection.replace("/", "-")
        world = World(folder, [Halfway(rounds=4)], evaluate_every=1, selection=selection)
        world.run()
        scores = values(world.listener.rounds, selection)
        rounds = {number: score for (_, number), score in scores.items() if number}
        best = Checkpoint.load(folder, BEST, "toy")
        assert best.best == max(rounds.values())
        assert best.round == max(rounds, key=lambda number: rounds[number])
        assert Checkpoint.load(folder, NEWEST, "toy").round == 4


class Rewarded(Halfway):
    """Tells of training what no evaluation does, at its highest in the second round."""

    def local(self, state: State, shard: Any, streams: Streams, memory: Memory) -> Contribution:
        told = super().local(state, shard, streams, memory)
        reward = encode([MetricSum("train/reward", shard[0], -abs(streams.round - 2.0), 1.0)])
        return Contribution(told.tensors, {**told.scalars, **reward})


def test_what_is_told_of_training_may_choose(tmp_path: Path) -> None:
    World(tmp_path, [Rewarded(rounds=4)], evaluate_every=1, selection="train/reward").run()
    best = Checkpoint.load(tmp_path, BEST, "toy")
    assert (best.round, best.best) == (2, 0.0)


class Boasting(Halfway):
    """Tells of training under the name of what is evaluated, and better the earlier it is."""

    def local(self, state: State, shard: Any, streams: Streams, memory: Memory) -> Contribution:
        told = super().local(state, shard, streams, memory)
        boast = encode([MetricSum("train/closeness", shard[0], 100.0 - streams.round, 1.0)])
        return Contribution(told.tensors, {**told.scalars, **boast})


def test_an_evaluation_counts_before_what_is_told_of_training(tmp_path: Path) -> None:
    World(tmp_path, [Boasting(rounds=3)], evaluate_every=1).run()
    best = Checkpoint.load(tmp_path, BEST, "toy").best
    assert best is not None
    assert best <= 1.0


def test_an_unmeasured_selection_value_keeps_no_best(tmp_path: Path) -> None:
    World(tmp_path, [Halfway(rounds=2)], selection="test/accuracy").run()
    assert not (tmp_path / BEST).exists()


def test_only_the_last_phase_has_a_best(tmp_path: Path) -> None:
    World(tmp_path, [Halfway(rounds=2), GoesOn(rounds=0)], evaluate_every=1).run()
    assert not (tmp_path / BEST).exists()


def test_a_diagnosis_at_the_end_does_not_take_the_best_away(tmp_path: Path) -> None:
    """What was learnt is the phase before; the diagnosis only looks at it."""
    world = World(tmp_path, [Halfway(rounds=2), Diagnosis(rounds=1)], evaluate_every=1)
    world.run()
    assert world.job().main_phase == 0
    best = Checkpoint.load(tmp_path, BEST, "toy")
    assert best.phase == 0
    assert World(tmp_path, [Halfway(), GoesOn(), Diagnosis()]).job().main_phase == 1
    assert World(tmp_path, [Diagnosis()]).job().main_phase == 0


def test_tensors_that_an_evaluation_adds_up_reach_its_summary(tmp_path: Path) -> None:
    world = World(tmp_path, [Summing(rounds=2)], evaluate_every=2)
    world.run()
    reports = world.listener.rounds
    # Five clients answer an evaluation; training sums come without tensors.
    assert values(reports, "people") == {("summing", 0): 5.0, ("summing", 2): 5.0}
    (trained,) = [m for m in reports[1].metrics if m.name == "told"]
    assert trained.value == 0.0


class Diagnosis(GoesOn):
    """Looks at what the phase before has learnt."""

    name = "diagnosis"
    diagnostic = True


class Summing(Halfway):
    """Counts the clients that were asked, in a tensor."""

    name = "summing"

    def evaluate(self, state: State, shard: tuple[str, torch.Tensor], streams: Streams) -> Contribution:
        return Contribution({"people": torch.ones(1)}, super().evaluate(state, shard, streams).scalars)

    def summarise(self, sums: Sequence[MetricSum], tensors: Mapping[str, torch.Tensor]) -> dict[str, float]:
        people = {"people": float(tensors["people"])} if tensors else {}
        return {**super().summarise(sums, tensors), **people, "told": float(bool(tensors))}


def test_checkpoints_come_at_their_period_and_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    save = Checkpoint.save

    def listening(checkpoint: Checkpoint, directory: Path, name: str) -> None:
        if name == NEWEST:
            saved.append(checkpoint.round)
        save(checkpoint, directory, name)

    monkeypatch.setattr(Checkpoint, "save", listening)
    World(tmp_path, [Halfway(rounds=7)], checkpoint_every=3).run()
    assert saved == [3, 6, 7]


def test_memory_that_was_not_saved_cannot_be_resumed(tmp_path: Path) -> None:
    kept = World(tmp_path, [Halfway(rounds=2)])
    kept.run()
    forgetful = World(tmp_path, kept.phases, saves_memories=False)
    with pytest.raises(RunFailed, match="1 nodes have no saved client memory of checkpoint 0-2"):
        forgetful.run(resume=True)


def test_a_node_that_cannot_save_ends_the_run(tmp_path: Path) -> None:
    world = World(tmp_path, [Halfway(rounds=2)])
    (tmp_path / "clients").write_text("in the way")
    with pytest.raises(RunFailed, match=r"query\.save failed on 1 nodes; the first said:"):
        world.run()


def test_all_clients_failing_ends_the_run_with_their_reason(tmp_path: Path) -> None:
    world = World(tmp_path, [Halfway(rounds=2, failing=["ada", "bob", "cid", "dee", "uma"])])
    with pytest.raises(RunFailed, match="the first said: ada: ValueError: ada has no power"):
        world.run()


def test_resuming_needs_a_checkpoint_of_the_method(tmp_path: Path) -> None:
    world = World(tmp_path, [Halfway(rounds=2)])
    with pytest.raises(UserError, match="no checkpoint there"):
        world.run(resume=True)


def test_the_server_app_conducts_the_job_of_its_run_configuration(tmp_path: Path) -> None:
    world = World(tmp_path, [Halfway(rounds=1)])
    asked: list[Any] = []
    kept: list[Outcome] = []

    def make_job(run_config: Any) -> Job:
        asked.append(run_config)
        return world.job()

    app = make_server_app(make_job, kept.append)
    app(world.grid(), Context(1, 0, {}, RecordDict(), {"overrides": "seed=3"}))
    assert asked == [{"overrides": "seed=3"}]
    torch.testing.assert_close(kept[0].artefacts["halfway"]["w"], after_a_round(torch.zeros(2, dtype=torch.float64)))
