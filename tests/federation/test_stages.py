"""Phases that read parts of the data: who is asked, what travels, what is counted, and what is refused."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from flwr.app import Message, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedalign.contribution import Contribution, State
from fedalign.data.federated import ClientInfo, Role
from fedalign.engines.in_process import InProcessGrid
from fedalign.errors import RunFailed, UserError
from fedalign.federation.checkpoint import NEWEST, Checkpoint
from fedalign.federation.conductor import Conductor
from fedalign.federation.directory import ClientDirectory, discover
from fedalign.federation.job import Federation, Job
from fedalign.federation.sampling import FixedSampler, FractionSampler, PoissonSampler, Sampler
from fedalign.federation.server_optimizer import FedAvg
from fedalign.federation.site import Site, check_apart
from fedalign.federation.strategy import SumStrategy
from fedalign.methods.base import Artefacts, Memory, Participation, ServerOptimizer
from fedalign.privacy.client_level import ClientLevel
from fedalign.privacy.local import DPSGD
from fedalign.privacy.metric_release import SummedMetrics
from fedalign.privacy.protection import Protection
from fedalign.rng import Streams

from .guarded import EVERYBODY, PLAIN_SUM, SEED, Guarded, Pull, Push, protection, secure_sum
from .toy import MEAN, VECTORS, Halfway, ToyData, grid_of, node, one_client_a_node, opener

CROWD = tuple(f"c{place:02}" for place in range(12))
HALVES = {name: ("sft",) if place < 5 else ("rl",) for place, name in enumerate(CROWD)}
SAMPLERS: dict[str, Sampler] = {
    "all": EVERYBODY, "share": FractionSampler(0.4), "number": FixedSampler(3), "coins": PoissonSampler(0.5),
}  # fmt: skip


def two_phases(rounds: tuple[int, int] = (3, 4), stages: tuple[str | None, str | None] = ("sft", "rl")) -> list[Pull]:
    phases: list[Pull] = [Pull(rounds[0]), Push(rounds[1])]
    for phase, stage in zip(phases, stages, strict=True):
        phase.stage = stage
    return phases


def world(folder: Path, privacy: Protection, **changes: Any) -> Guarded:
    phases = changes.pop("phases", None) or two_phases()
    return Guarded(folder, privacy, phases, clients=CROWD, **{"stages": HALVES, **changes})


# Who is asked.


@given(
    st.dictionaries(
        st.sampled_from(CROWD), st.lists(st.sampled_from(["sft", "reward", "rl"]), max_size=2, unique=True), min_size=4
    ),
    st.sampled_from(["sft", "reward", "rl", None]),
    st.sampled_from(sorted(SAMPLERS)),
    st.booleans(),
    st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_a_cohort_holds_nobody_of_another_stage(
    stages: dict[str, list[str]], stage: str | None, sampler: str, everybody: bool, seed: int
) -> None:
    directory = ClientDirectory.of(ClientInfo(name, Role.TRAIN, tuple(held)) for name, held in stages.items())
    phase = Pull(1)
    phase.stage = stage
    phase.participation = Participation.ALL if everybody else Participation.SAMPLED
    may = {name for name, held in stages.items() if stage is None or not held or stage in held}
    assert set(directory.training_for(stage)) == may
    if len(may) < 3:
        return
    strategy = SumStrategy(phase, 0, directory, SAMPLERS[sampler], FedAvg(1.0).build(), "{}", seed)
    cohorts = [strategy.cohort(number) for number in range(1, 6)]
    assert all(set(cohort) <= may for cohort in cohorts)
    if everybody:
        assert all(set(cohort) == may for cohort in cohorts)
    if sampler == "share" and not everybody:
        assert all(len(cohort) == max(1, round(0.4 * len(may))) for cohort in cohorts)


@pytest.mark.parametrize("separate", [False, True])
def test_only_clients_of_a_stage_train_and_are_evaluated(tmp_path: Path, separate: bool) -> None:
    run = world(tmp_path, protection(), separate=separate)
    run.run()
    for phase, stage in zip(run.phases, ("sft", "rl"), strict=True):
        theirs = {name for name in CROWD if stage in HALVES[name]}
        assert {client for _, client in phase.trained} == theirs
        told = [m for r in run.listener.rounds for m in r.metrics if m.phase == phase.name]
        assert {m.group for m in told if m.name == "train/closeness" and m.group is not None} == theirs
        assert {m.value for m in told if m.name == "cohort"} == {len(theirs)}


class Evaluated(Halfway):
    """Is evaluated on some roles only."""

    def __init__(self, *roles: Role, **changes: Any) -> None:
        super().__init__(**changes)
        self.evaluated = frozenset(roles)


@pytest.mark.parametrize(("roles", "groups"), [((Role.UNSEEN,), {"uma"}), ((Role.TRAIN,), {*VECTORS}), ((), set())])
def test_a_phase_chooses_who_evaluates_it(tmp_path: Path, roles: Sequence[Role], groups: set[str]) -> None:
    phase = Evaluated(*roles, rounds=1)
    grid = grid_of(opener([phase]))
    federation = Federation(1, FractionSampler(1.0), FedAvg(1.0), MEAN, 1, 1, 9.0, 1.0, 1, 3, 100.0)
    outcome = Conductor(Job("toy", "x", [phase], federation, 5, "{}", 1, tmp_path, [], False), grid).run()
    assert outcome.counters["rounds"] == 1
    assert len(phase.streams) == 4 + 2 * len(groups)
    assert {s.client for s in phase.streams if s.round == 0} == groups


def test_nodes_tell_the_stages_of_their_clients() -> None:
    class Staged(ToyData):
        @property
        def clients(self) -> list[ClientInfo]:
            return [replace(c, stages=("sft", "rl") if c.name == "bob" else ()) for c in super().clients]

    found = discover(one_client_a_node(opener([Halfway()], Staged())), "{}", 5, 1.0)
    assert found.stages == {"bob": ("sft", "rl")}
    assert found.training_for("reward") == ["ada", "cid", "dee"]
    assert (found.training_for("rl"), found.unseen) == (sorted(VECTORS), ["uma"])


def test_a_stage_that_nobody_holds_is_refused_before_the_first_round(tmp_path: Path) -> None:
    phases = two_phases(stages=("sft", "reward"))
    run = world(tmp_path, protection(), phases=phases)
    with pytest.raises(UserError, match="no training client holds data of stage 'reward', which phase 'push'"):
        run.run()
    assert not phases[0].trained
    phases[1].rounds = 0
    run.run()


def test_a_sampler_must_fit_the_clients_of_every_phase(tmp_path: Path) -> None:
    run = world(tmp_path, protection(), sampler=FixedSampler(6))
    with pytest.raises(UserError, match="size=6 but only 5 clients train"):
        run.run()
    assert not run.phases[0].trained


# What is counted.


@pytest.mark.parametrize("sampler", ["all", pytest.param("coins", marks=pytest.mark.slow)])
def test_a_run_over_disjoint_stages_spends_its_budget_in_each(tmp_path: Path, sampler: str) -> None:
    privacy = protection(epsilon=4.0, noise_multiplier=None)
    told = world(tmp_path / "two", privacy, sampler=SAMPLERS[sampler]).run().privacy
    assert told is not None
    assert 0.97 * 4 <= told["epsilon"] <= 4
    assert all(0.97 * 4 <= told["epsilon_by_phase"][name] <= 4 for name in ("pull", "push"))
    assert told["composition"] == "parallel"
    for place, name in enumerate(("pull", "push")):
        phase = two_phases()[place]
        alone = world(tmp_path / name, privacy, sampler=SAMPLERS[sampler], phases=[phase]).run().privacy
        assert alone is not None
        assert alone["noise_multipliers"] == {name: told["noise_multipliers"][name]}
        assert alone["noise_multiplier"] == told["noise_multipliers"][name]
    assert told["noise_multiplier"] == min(told["noise_multipliers"].values())


def test_stages_that_share_clients_share_the_budget(tmp_path: Path) -> None:
    privacy = protection(epsilon=4.0, noise_multiplier=None)
    apart = world(tmp_path / "apart", privacy).run().privacy
    shared = world(tmp_path / "shared", privacy, stages={**HALVES, CROWD[0]: ("sft", "rl")}).run().privacy
    assert apart is not None
    assert shared is not None
    assert shared["composition"] == "sequential"
    assert 0.97 * 4 <= shared["epsilon"] <= 4
    assert max(shared["epsilon_by_phase"].values()) < 3.5
    assert shared["noise_multipliers"]["pull"] == shared["noise_multipliers"]["push"] > apart["noise_multiplier"]


def test_noise_is_that_of_its_phase(tmp_path: Path) -> None:
    """The first phase's noise is less than the second's, which has more rounds."""
    run = world(tmp_path, protection(epsilon=1.0, noise_multiplier=None))
    run.phases = [Wide(1, "sft"), Wide(9, "rl", "push")]
    told = run.run().privacy
    assert told is not None
    # Nothing is added but noise, and the state is the mean: the noise of all rounds over the clients.
    for phase in run.phases:
        assert isinstance(phase, Wide)
        clients = 5 if phase.stage == "sft" else 7
        spread = float(phase.sums[-1].std()) * clients
        assert spread == pytest.approx(told["noise_multipliers"][phase.name], rel=0.05)
    assert told["noise_multipliers"]["push"] > 2 * told["noise_multipliers"]["pull"]


class Wide(Pull):
    """Clients add nothing; remembers the steps."""

    def __init__(self, rounds: int, stage: str, name: str = "pull") -> None:
        super().__init__(rounds, 5000)
        self.stage, self.name = stage, name
        self.sums: list[Tensor] = []

    def local(self, state: State, shard: str, streams: Streams, memory: Memory) -> Contribution:
        return Contribution({"delta/w": torch.zeros(self.size, dtype=torch.float64)}, {"weight": 1.0})

    def update(self, state: State, total: Contribution, optimizer: ServerOptimizer) -> State:
        self.sums.append(total.tensors["delta/w"] / total.scalars["weight"])
        return super().update(state, total, optimizer)


@pytest.mark.parametrize("stop", [(0, 2), (1, 1), (1, 3)])
def test_a_run_that_is_resumed_has_spent_the_same(tmp_path: Path, stop: tuple[int, int]) -> None:
    privacy = protection(epsilon=4.0, noise_multiplier=None, metrics=SummedMetrics(("train/closeness",), 30.0))
    whole = world(tmp_path / "whole", privacy, metrics=("train/closeness",)).run()
    run = world(tmp_path / "cut", privacy, metrics=("train/closeness",))
    run.phases = [Stopping(3, "sft", "pull", stop), Stopping(4, "rl", "push", stop)]
    with pytest.raises(Stopped):
        run.run()
    run.phases, run.privacy = two_phases(), privacy
    resumed = run.run(resume=True)
    assert resumed.privacy == whole.privacy
    assert torch.equal(resumed.artefacts["push"]["w"], whole.artefacts["push"]["w"])


class Stopped(BaseException):
    """Ends a run as a power cut does."""


class Stopping(Push):
    """Dies before it updates after a round of a phase."""

    def __init__(self, rounds: int, stage: str, name: str, stop: tuple[int, int]) -> None:
        super().__init__(rounds)
        self.stage, self.name, self.stop = stage, name, stop
        self.done = 0

    def update(self, state: State, total: Contribution, optimizer: ServerOptimizer) -> State:
        self.done += 1
        if (int(self.name == "push"), self.done) == (self.stop[0], self.stop[1] + 1):
            raise Stopped
        return super().update(state, total, optimizer)


def test_a_secure_sum_is_over_the_clients_of_a_stage(tmp_path: Path) -> None:
    run = world(tmp_path / "secure", secure_sum())
    summed = run.run().artefacts["push"]["w"]
    assert {client for _, client in run.phases[0].trained} == set(CROWD[:5])
    loose = ClientLevel(1e6, {}, {}, 2.0, None)
    plain = world(tmp_path / "plain", protection(noise_multiplier=0.0, clip=loose)).run().artefacts["push"]["w"]
    torch.testing.assert_close(summed, plain, atol=1e-6, rtol=0)


# What travels.


class Half(Halfway):
    """Keeps a part of its state on the server."""

    def __init__(self, rounds: int = 2) -> None:
        super().__init__(rounds)
        self.arrived: list[set[str]] = []

    def initial(self, streams: Streams, artefacts: Artefacts) -> State:
        return {**super().initial(streams, artefacts), "ledger": torch.zeros(100, dtype=torch.float32)}

    def broadcast(self, state: State) -> State:
        return {"w": state["w"]}

    def local(self, state: State, shard: tuple[str, Tensor], streams: Streams, memory: Memory) -> Contribution:
        self.arrived.append(set(state))
        return super().local(state, shard, streams, {})

    def evaluate(self, state: State, shard: tuple[str, Tensor], streams: Streams) -> Contribution:
        self.arrived.append(set(state))
        return super().evaluate(state, shard, streams)

    def update(self, state: State, total: Contribution, optimizer: ServerOptimizer) -> State:
        assert set(state) == {"w", "ledger"}
        return {**super().update(state, total, optimizer), "ledger": state["ledger"] + 1}


def conducted(folder: Path, phase: Halfway, resume: bool = False) -> tuple[State, Mapping[str, float]]:
    federation = Federation(1, FractionSampler(1.0), FedAvg(1.0), MEAN, 1, 1, 9.0, 1.0, 1, 3, 100.0)
    grid = grid_of(opener([phase]), node(1))
    outcome = Conductor(Job("toy", "x", [phase], federation, 5, "{}", 1, folder, [], resume), grid).run()
    return outcome.artefacts["halfway"], outcome.counters


def test_what_stays_on_the_server_does_not_travel_and_is_not_lost(tmp_path: Path) -> None:
    phase = Half()
    state, counted = conducted(tmp_path / "half", phase)
    whole, plain = conducted(tmp_path / "whole", Halfway(2))
    assert torch.equal(state["w"], whole["w"])
    assert torch.equal(state["ledger"], torch.full((100,), 2.0))
    assert all(names == {"w"} for names in phase.arrived)
    # Two numbers of eight bytes: to four clients in two rounds, and to five in three evaluations.
    assert counted["down_bytes"] == plain["down_bytes"] == 16 * (4 * 2 + 5 * 3)
    saved = Checkpoint.load(tmp_path / "half", NEWEST, "toy")
    assert set(saved.state) == {"w", "ledger"}
    more, _ = conducted(tmp_path / "half", Half(3), resume=True)
    assert torch.equal(more["ledger"], torch.full((100,), 3.0))


class Wire(InProcessGrid):
    """Sends copies, as a grid between processes does."""

    def create_message(self, content: RecordDict, *arguments: Any, **more: Any) -> Message:
        return super().create_message(pickle.loads(pickle.dumps(content)), *arguments, **more)


def test_what_travels_between_processes_is_the_same(tmp_path: Path) -> None:
    phase = Half()
    inner = grid_of(opener([phase]), node(1))
    federation = Federation(1, FractionSampler(1.0), FedAvg(1.0), MEAN, 1, 1, 9.0, 1.0, 1, 3, 100.0)
    job = Job("toy", "x", [phase], federation, 5, "{}", 1, tmp_path / "wire", [], False)
    outcome = Conductor(job, Wire(inner.client_app, inner.contexts)).run()
    state, counted = conducted(tmp_path / "direct", Half())
    assert all(torch.equal(outcome.artefacts["halfway"][name], state[name]) for name in ("w", "ledger"))
    assert outcome.counters["down_bytes"] == counted["down_bytes"]
    assert all(names == {"w"} for names in phase.arrived)


@pytest.mark.parametrize("secure", [False, True])
def test_noise_and_secure_sums_are_over_what_travels(tmp_path: Path, secure: bool) -> None:
    class Served(Push):
        def initial(self, streams: Streams, artefacts: Artefacts) -> State:
            return {"w": torch.zeros(self.size, dtype=torch.float64), "kept": torch.ones(3)}

        def broadcast(self, state: State) -> State:
            return {"w": state["w"]}

    privacy = secure_sum() if secure else protection(noise_multiplier=0.5)
    whole = Guarded(tmp_path / "whole", privacy, [Push(2)]).run().artefacts["push"]
    served = Guarded(tmp_path / "served", privacy, [Served(2)]).run().artefacts["push"]
    assert torch.equal(served["w"], whole["w"])
    assert torch.equal(served["kept"], torch.ones(3))


# What is refused where the data are.


class Shared(Pull):
    """Reads what a test's shards say, under stages."""

    def __init__(self, stage: str | None, rounds: int = 1) -> None:
        super().__init__(rounds)
        self.stage, self.name = stage, f"learn {stage}"

    def users(self, shard: Any) -> Sequence[str]:
        return tuple(shard.get(self.stage, ()))

    def examples(self, shard: Any) -> Sequence[str]:
        return tuple(f"{user}/1" for user in self.users(shard))


APART, MIXED = {"sft": ("ann", "bob"), "rl": ("cid",)}, {"sft": ("ann", "bob"), "rl": ("bob",)}
PHASES = [Shared("sft"), Shared("rl")]


def test_a_user_or_example_in_two_stages_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="the user 'bob' of client 'x' is in the stages 'sft' and 'rl'"):
        check_apart(PHASES, "user", "x", MIXED)
    with pytest.raises(UserError, match="the example 'bob/1' of client 'x' is in the stages 'sft' and 'rl'"):
        check_apart(PHASES, "example", "x", MIXED)
    check_apart(PHASES, "user", "x", APART)
    check_apart([Shared("sft"), Shared("sft")], "user", "x", MIXED)
    check_apart([Shared("sft"), Shared("rl", rounds=0)], "user", "x", MIXED)


@pytest.mark.parametrize(
    ("disjoint", "local", "refused"), [(True, True, True), (False, True, False), (True, False, False)]
)
def test_a_node_refuses_its_own_clients_before_it_trains(disjoint: bool, local: bool, refused: bool) -> None:
    class Data(ToyData):
        def shard(self, client: str) -> Any:
            return MIXED if client == "cid" else APART

    dp_sgd = {**PLAIN_SUM, "local": DPSGD("user", 1.0, 0.5, "loop"), "noise_multiplier": 1.0, "delta": 1e-3}
    privacy = protection(**dp_sgd) if local else protection()
    site = Site(SEED, torch.get_num_threads(), PHASES, Data(), privacy, (), disjoint)
    grid = one_client_a_node(lambda config, node_config: site)
    if not refused:
        discover(grid, "{}", 5, 1.0)
        return
    with pytest.raises(RunFailed, match=r"cannot start: .*the user 'bob' of client 'cid'"):
        discover(grid, "{}", 5, 1.0)
    site.check(["ada"])


@pytest.mark.parametrize(
    ("unit", "delta", "refused"), [("user", 0.05, False), ("user", 0.1, True), ("example", 0.1, True)]
)
def test_a_delta_that_gives_a_unit_away_is_refused_where_the_units_are(
    unit: Literal["user", "example"], delta: float, refused: bool
) -> None:
    """Ten people of stage sft on five clients, and five of stage rl."""

    class Data(ToyData):
        def shard(self, client: str) -> Any:
            return {"sft": (f"{client}-1", f"{client}-2"), "rl": (f"{client}-3",)}

    data = Data(tuple("abcde"), ("f",))
    dp_sgd = {**PLAIN_SUM, "local": DPSGD(unit, 1.0, 0.5, "loop"), "noise_multiplier": 1.0, "delta": delta}
    site = Site(SEED, torch.get_num_threads(), PHASES, data, protection(**dp_sgd), (), True)
    everybody = [client.name for client in data.clients]
    if not refused:
        site.check(everybody)
        return
    with pytest.raises(UserError, match=rf"privacy\.delta=0\.1: phase 'learn sft' reads 10 {unit}s"):
        site.check(everybody)
    # Unseen clients are no units, and phases that do not train read none.
    site.check(["a", "b", "c", "d", "f"])
    replace(site, phases=[Shared("sft", rounds=0)]).check(everybody)
