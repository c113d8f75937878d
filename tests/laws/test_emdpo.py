"""Laws 1 to 4 and 7 for latent types: EM-DPO's limit is DPO, and layout, engine and interruption do not matter."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedalign.cli import main
from fedalign.contribution import Contribution, State, total
from fedalign.data.rankings import RankingShard
from fedalign.methods.collapse import ALARMS, RESTARTS
from fedalign.methods.em import MASS, SHARES
from fedalign.methods.type_model import PRIOR, TYPES, type_of
from fedalign.models.text import TextCodec
from fedalign.objectives.dpo import dpo_loss, sequence_log_probability
from fedalign.report.metrics_log import read_metrics
from fedalign.rng import Streams
from fedalign.run import resume, start
from fedalign.run_end import Result
from tests.language_models import random_model
from tests.methods.ranking_worlds import Rounds, adapters, em, shard, silo, world

from .conftest import final_state, residuals
from .test_engines_agree import separate
from .test_resume import Killed, kill_after

RANKINGS = (
    "method=emdpo",
    "data=linear_rankings",
    "data.annotators=10",
    "data.responses=3",
    "data.form=full",
    "data.probe_menus=4",
    "data.train_judgments=8",
    "data.test_judgments=3",
    "data.world_seed=5",
    "encoder.size=4",
    "model=linear_utility",
    "partition.unseen=2",
    "method/fair=none",
    "method.types=2",
    "method.batch=2",
    "method.local.steps=2",
    "federation.rounds=4",
    "federation.evaluate_every=4",
    "federation.checkpoint_every=2",
)
"""Overrides of a tiny run of EM-DPO."""

CLUSTERED = (
    "method.start.iterations=2",
    "method.start.restarts=2",
    "method.start.rounds=1",
    "method.start.dimensions=6",
)
RANDOM = ("method/start=random",)
DPO = ("method/assignment=together", "method.types=1", "method.top=1", "method.folds.cross_fit=false")
LR = 0.5

TypesRunner = Callable[..., Result]


@pytest.fixture
def types(tmp_path: Path) -> TypesRunner:
    """Run the tiny world of rankings under more overrides, in a directory of the given name."""

    def runner(name: str, *overrides: str) -> Result:
        begun = () if any(o.startswith("method/start=") for o in overrides) else CLUSTERED
        return start([*RANKINGS, *begun, *overrides, f"output={tmp_path / name}"])

    return runner


# Law 4: limits.


def dpo_step(weight: torch.Tensor, client: RankingShard) -> torch.Tensor:
    """Return linear weights after one step of DPO on a client's pairs; a linear reward's reference is 0."""
    own, tiers = client.features[client.train], client.tiers[client.train]
    rows = torch.arange(len(own))
    chosen, rejected = own[rows, tiers.argmin(1)], own[rows, tiers.argmax(1)]
    weight = weight.clone().requires_grad_()
    zeros = torch.zeros(len(own))
    loss, _ = dpo_loss(chosen @ weight, rejected @ weight, zeros, zeros, 1.0)
    (gradient,) = torch.autograd.grad(loss.mean(), weight)
    return (weight - LR * gradient).detach()


def test_one_type_on_pairs_is_federated_dpo_through_the_whole_phase() -> None:
    phase, clients = em(*DPO, rounds=3), world(4, responses=2)
    rounds = Rounds(phase)
    weight = type_of(rounds.state, 0)["score.weight"][0]
    for number in (1, 2, 3):
        rounds.round(number, clients)
        weight = torch.stack([dpo_step(weight, client) for client in clients]).mean(0)
        torch.testing.assert_close(type_of(rounds.state, 0)["score.weight"][0], weight, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("shaken", [pytest.param(0.0, marks=pytest.mark.slow), 0.2])
def test_one_adapter_on_pairs_is_dpo_of_a_language_model(tmp_path: Path, shaken: float) -> None:
    folder = random_model("gpt2", tmp_path)
    phase, model = adapters(folder, *DPO)
    client, rounds = shard(judgments=5, responses=2), Rounds(phase)
    generator = torch.Generator().manual_seed(2)
    before = {
        name: tensor + shaken * torch.randn(tensor.shape, generator=generator)
        for name, tensor in type_of(rounds.state, 0).items()
    }
    rounds.state = {**rounds.state, **{f"{TYPES}0.{name}": tensor for name, tensor in before.items()}}
    rounds.round(1, [client])
    expected = language_dpo_step(model.policy, TextCodec(str(folder), "model"), before, client)
    found = type_of(rounds.state, 0)
    assert residuals(found, expected)[0] < 1e-6
    assert residuals(found, before)[0] > 1e-3


def language_dpo_step(policy: torch.nn.Module, codec: TextCodec, before: State, client: RankingShard) -> State:
    """Return an adapter after one step of DPO, on texts that are padded otherwise."""
    chosen = [client.responses[row][int(client.tiers[row].argmin())] for row in client.train.tolist()]
    rejected = [client.responses[row][int(client.tiers[row].argmax())] for row in client.train.tolist()]
    prompts = [" ".join(client.prompts[row].split()[-4:]) for row in client.train.tolist()]
    own = {f"policy.{name}": parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}
    assert own.keys() == before.keys()
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(before[name])
    texts = [codec.responses(prompts, each, 40) for each in (chosen, rejected)]
    policies = [sequence_log_probability(policy(t.ids, t.attention_mask, None), t.ids, t.response_mask) for t in texts]
    with torch.no_grad():
        references = [
            sequence_log_probability(policy.reference(t.ids, t.attention_mask), t.ids, t.response_mask)  # type: ignore[operator]
            for t in texts
        ]
    loss, _ = dpo_loss(policies[0], policies[1], references[0], references[1], 0.1)
    gradients = torch.autograd.grad(loss.mean(), list(own.values()))
    return {name: before[name] - LR * gradient for name, gradient in zip(own, gradients, strict=True)}


def test_em_dpo_with_one_type_is_the_dpo_arm_bit_by_bit() -> None:
    alone = ("method/start=random", "method.start.scale=0", "method.folds.cross_fit=false")
    for one, arm in ((em("method.types=1", *alone), em("method=dpo")), (em("method.types=1", "method.top=1"), None)):
        same = arm or em("method/assignment=together", "method.types=1")
        assert residuals(Rounds(one).run(world(3)), Rounds(same).run(world(3))) == (0.0, 0.0)


def test_the_likelihood_term_without_weight_changes_nothing(tmp_path: Path) -> None:
    folder, client = random_model("gpt2", tmp_path), shard(judgments=4, responses=2)
    ends = [
        Rounds(adapters(folder, *DPO, f"method.likelihood={weight}", rounds=1)[0]).run([client])
        for weight in ("0.0", "0.0", "0.5")
    ]
    assert residuals(ends[0], ends[1]) == (0.0, 0.0)
    assert residuals(ends[0], ends[2])[0] > 1e-4


def test_hard_posteriors_are_the_limit_of_much_evidence() -> None:
    """With likelihoods far apart EM-DPO trains as IFCA does."""
    clients, far = world(4, 16), torch.tensor([[40.0, -3.0, 2.0]])
    ends = []
    for assignment in (("method.assignment.temper=1",), ("method/assignment=hardest",)):
        rounds = Rounds(em(*assignment))
        rounds.state = {
            **rounds.state,
            f"{TYPES}0.score.weight": far,
            f"{TYPES}1.score.weight": -far,
        }
        rounds.round(1, clients)
        ends.append(rounds.state)
    assert residuals(*ends)[0] < 1e-4


# Law 1: devices and silos.


def sums(replies: list[Contribution]) -> dict[str, torch.Tensor]:
    return {name: total(replies).tensors[name] for name in (MASS, SHARES)}


@given(people=st.integers(1, 5), number=st.integers(1, 4))
@settings(max_examples=4)
def test_a_silo_tells_the_shares_and_the_mass_of_its_annotators(people: int, number: int) -> None:
    phase = em("method.weight=judgments", "method.least_share=0")
    apart = [Rounds(phase).reply(number, client) for client in world(people)]
    together = [Rounds(phase).reply(number, silo(people))]
    own, joint = sums(apart), sums(together)
    # Halves are drawn by client, so that only what does not depend on them is the same in every round.
    assert float(own[MASS].sum()) == pytest.approx(float(joint[MASS].sum()))
    assert float(own[SHARES].sum()) == pytest.approx(float(joint[SHARES].sum())) == pytest.approx(people)


@pytest.mark.parametrize("assignment", ["posterior", "hardest", "per_judgment"])
def test_without_halves_a_silo_and_devices_tell_exactly_the_same(assignment: str) -> None:
    changes = ("method.weight=judgments", "method.least_share=0", "method.folds.cross_fit=false")
    phase = em(*changes, f"method/assignment={assignment}")
    own = sums([Rounds(phase).reply(1, client) for client in world(5)])
    joint = sums([Rounds(phase).reply(1, silo(5))])
    for name in (MASS, SHARES):
        torch.testing.assert_close(joint[name], own[name], rtol=1e-5, atol=1e-6)


# Law 2: engines.


def agree(one: Result, other: Result) -> None:
    for phase in ("start", "em"):
        largest, mean = residuals(final_state(one, phase), final_state(other, phase))
        assert largest <= 1e-6
        assert mean <= 1e-6
    assert other.summary.metrics == pytest.approx(one.summary.metrics, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["probe", "deltas"])
def test_flower_simulation_agrees_with_in_process(types: TypesRunner, kind: str) -> None:
    change = (f"method/start={kind}", *CLUSTERED)
    agree(types("here", *change), types("there", *change, "engine=flower"))


@pytest.mark.slow
def test_one_node_a_client_agrees_with_one_node_for_all(types: TypesRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    together = types("together")
    separate(monkeypatch)
    agree(together, types("apart"))


# Law 3: interruption.

ALARMED = (
    *RANDOM,
    "method.collapse.largest=0.5",
    "method.collapse.patience=1",
    "method.collapse.action=restart",
    "method.collapse.restarts=2",
)


@pytest.mark.parametrize(
    ("phase", "after"),
    [pytest.param("start", 3, marks=pytest.mark.slow), pytest.param("em", 1, marks=pytest.mark.slow), ("em", 3)],
)
def test_resumed_equals_straight_through(
    types: TypesRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str, after: int
) -> None:
    change = ("method.local.optimizer=adam", "method.local.optimizer_state=persist", "federation/sampler=full")
    straight = types("straight", *change)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(after, patch, phase)
        types("killed", *change)
    resumed = resume(tmp_path / "killed")
    for name in ("start", "em"):
        assert residuals(final_state(straight, name), final_state(resumed, name)) == (0.0, 0.0)
    assert resumed.summary.metrics == straight.summary.metrics


def test_alarms_and_restarts_survive_an_interruption(
    types: TypesRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = types("straight", *ALARMED)
    state = final_state(straight, "em")
    assert int(state[ALARMS]) >= 2
    assert int(state[RESTARTS]) == 2
    told = {m.name: m.value for m in read_metrics(tmp_path / "straight" / "metrics.jsonl") if "collapse" in m.name}
    assert told == {"train/collapse_alarms": float(state[ALARMS]), "train/collapse_restarts": 2.0}
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(3, patch, "em")
        types("killed", *ALARMED)
    resumed = resume(tmp_path / "killed")
    assert residuals(state, final_state(resumed, "em")) == (0.0, 0.0)


# Law 7: randomness.


@pytest.mark.slow
def test_one_seed_is_one_run_whatever_the_global_generators_are(types: TypesRunner) -> None:
    torch.manual_seed(1)
    random.seed(1)
    first = types("first")
    before = torch.get_rng_state()
    random.seed(2)
    again = types("again")
    assert torch.equal(torch.get_rng_state(), before)
    other = types("other", "seed=1")
    for phase in ("start", "em"):
        assert residuals(final_state(first, phase), final_state(again, phase)) == (0.0, 0.0)
        assert residuals(final_state(first, phase), final_state(other, phase))[0] > 1e-3
    assert first.summary.metrics == again.summary.metrics


# What EM cannot do, and says so.


def test_a_symmetric_start_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *RANKINGS, "method/start=equal", f"output={tmp_path / 'run'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fedalign: method/start=equal: types that begin alike stay alike")
    assert list(tmp_path.iterdir()) == []


def test_a_demonstration_of_it_runs_and_stays_where_it_is(types: TypesRunner) -> None:
    found = types("run", "method/start=equal", "method.start.demonstration=true", "method.batch=null")
    state = final_state(found, "em")
    assert torch.equal(type_of(state, 0)["score.weight"], type_of(state, 1)["score.weight"])
    assert state[PRIOR].tolist() == [0.5, 0.5]
    assert found.summary.metrics["test/assignment_entropy"] == pytest.approx(torch.tensor(2.0).log().item())
    assert found.summary.metrics["train/effective_types"] == pytest.approx(2.0)


def test_a_collapse_that_ends_the_run_is_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change = [o for o in ALARMED if "action" not in o]
    assert main(["run", *RANKINGS, *change, "method.collapse.action=fail", f"output={tmp_path / 'run'}"]) == 1
    assert "types have collapsed for 1 rounds" in capsys.readouterr().err


def test_streams_of_the_seed_are_where_draws_come_from() -> None:
    """A type's batches are its own: training another type, or not, does not change them."""
    client = shard(judgments=16)
    name = "delta/types.0.score.weight"
    both, one = (
        em("method.batch=3", f"method.top={top}", "method.least_share=0", "method.assignment.temper=0.001")
        for top in (2, 1)
    )
    rounds = Rounds(both)
    replies = [phase.local(rounds.state, client, Streams(0, "em", 1, "ann"), {}).tensors for phase in (both, one)]
    trained = next(key for key in replies[1] if key.startswith("delta/"))
    assert torch.equal(replies[0][trained], replies[1][trained])
    assert name in replies[0]
