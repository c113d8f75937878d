"""The laws on alignment by reinforcement learning: resumption, engines, limits, guarantees, randomness, options."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from fedalign.config import parse, resolve, to_json
from fedalign.contribution import State, total
from fedalign.data.federated import Role
from fedalign.errors import UserError
from fedalign.metrics.record import decode
from fedalign.rng import Streams
from fedalign.run import resume, start
from fedalign.run_end import Result
from fedalign.site import open_site
from tests.cases import mostly_slow
from tests.language_models import random_model
from tests.methods.selectors import Federation

from .conftest import final_state, residuals
from .test_pair_options import Outcome, differ
from .test_resume import Killed, kill_after, timeless

TINY = (
    "data.users=12",
    "data.demonstrations=4",
    "data.comparisons=0",
    "data.test_demonstrations=6",
    "data.test_comparisons=0",
    "data.world_seed=7",
    "model.rank=2",
    "model.alpha=4",
    "method.lengths.prompt=6",
    "method.lengths.response=5",
    "method.sft.rounds=2",
    "method.sft.batch=3",
    "method.sft.local.steps=2",
    "method.rl.rounds=2",
    "method.rl.batch=3",
    "method.rl.local.steps=2",
    "federation.sampler.size=3",
    "federation.checkpoint_every=1",
)
PREFERENCES = (
    "data.comparisons=4",
    "data.test_comparisons=4",
    "federation.sampler.size=2",
    "partition.shares.sft=0.34",
    "partition.shares.reward=0.33",
    "partition.shares.rl=0.33",
    "method.reward_model.rounds=2",
    "method.reward_model.batch=3",
    "method.reward_model.local.steps=2",
)
SEEDED = "privacy/randomness=seeded"
GUARANTEES: dict[str, tuple[str, ...]] = {
    "central": ("privacy=central", SEEDED),
    "local_user": ("privacy=local_user", "privacy.local.grad_sample=hooks", SEEDED),
    "local_example": ("privacy=local_example", SEEDED),
    "distributed": ("privacy=distributed", SEEDED),
}

Align = Callable[..., Result]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model("gpt2", tmp_path_factory.mktemp("model"))


REWARD = "method/reward=vader"
"""The random model knows good and bad, and little else of what the synthetic world's own reward counts."""


def overrides_of(folder: Path, *overrides: str) -> list[str]:
    people = "method=dprlhf_preferences" in overrides
    method = [] if any(o.startswith("method=") for o in overrides) else ["method=dprlhf"]
    reward = [] if people else [REWARD]
    more = PREFERENCES if people else ()
    gone = [o.removesuffix("=null") + "." for o in overrides if o.endswith("=null")]
    # Nor do other samplers know the size of a cohort.
    gone += ["federation.sampler."] * ("federation/sampler=fraction" in overrides)
    known = [o for o in (*TINY, *more) if not o.startswith(tuple(gone))]
    return [*method, *known, f"model.model={folder}", *reward, *overrides]


@pytest.fixture
def align(tmp_path: Path, folder: Path) -> Align:
    """Run the tiny alignment under more overrides, in a directory of the given name."""

    def runner(name: str, *overrides: str) -> Result:
        return start([*overrides_of(folder, *overrides), f"output={tmp_path / name}"])

    return runner


# Law 3.


@pytest.mark.parametrize(("phase", "number"), mostly_slow([("sft", 2), ("rl", 1)], [("rl", 1)]))
def test_resumed_equals_straight_through(
    align: Align, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str, number: int
) -> None:
    straight = align("straight", "method.rl.local.optimizer_state=persist")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(number, patch, phase)
        align("killed", "method.rl.local.optimizer_state=persist")
    resumed = resume(tmp_path / "killed")
    for name in ("sft", "rl"):
        assert residuals(final_state(straight, name), final_state(resumed, name)) == (0.0, 0.0)
    assert resumed.summary.metrics == straight.summary.metrics
    assert resumed.summary.traffic == straight.summary.traffic
    assert timeless(tmp_path / "killed") == timeless(tmp_path / "straight")


# Law 2.


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dprlhf", "dprlhf_preferences", "dprlhf_rloo"])
def test_flower_s_simulation_agrees(align: Align, method: str) -> None:
    # SGD: where rewards are equal, Adam makes steps of what rounding leaves of gradients.
    arm = (f"method={method}", *(f"method.{block}.local.optimizer=sgd" for block in ("sft", "rl")))
    here, there = align("here", *arm), align("there", *arm, "engine=flower")
    for name in ("sft", "rl"):
        largest, mean = residuals(final_state(here, name), final_state(there, name))
        assert largest <= 1e-6
        assert mean <= 1e-6
    assert here.summary.metrics == pytest.approx(there.summary.metrics, abs=1e-5)


# Law 7.


@pytest.mark.slow
def test_one_seed_is_one_run_and_another_is_not(align: Align) -> None:
    first, again, other = align("first"), align("again"), align("other", "seed=1")
    for name in ("sft", "rl"):
        assert residuals(final_state(first, name), final_state(again, name)) == (0.0, 0.0)
        assert residuals(final_state(first, name), final_state(other, name))[0] > 1e-4
    assert first.summary.metrics == again.summary.metrics
    assert first.summary.metrics != other.summary.metrics


# Law 4.


@pytest.mark.slow
def test_central_noise_of_nothing_and_a_wide_bound_is_no_privacy(align: Align) -> None:
    off = ("privacy.noise_multiplier=0", "privacy.epsilon=null", "privacy.clip.bound=1e6")
    # Who is asked is a secret of the server's under a guarantee: all are.
    everybody = ("federation/sampler=fraction", "federation.sampler.fraction=1", "data.users=6")
    plain, private = align("plain", *everybody), align("private", *everybody, "privacy=central", SEEDED, *off)
    for name in ("sft", "rl"):
        largest, _ = residuals(final_state(plain, name), final_state(private, name))
        assert largest < 1e-6


# Law 6, and what is stated.


def guarantee(result: Result) -> dict[str, Any]:
    assert result.summary.privacy is not None
    return result.summary.privacy


@pytest.mark.slow
def test_stages_of_other_users_spend_side_by_side_and_stages_of_the_same_add_up(align: Align) -> None:
    fixed = ("privacy=central", "privacy.epsilon=null", "privacy.noise_multiplier=4", SEEDED)
    all_of_them = ("federation/sampler=fraction", "federation.sampler.fraction=1")
    short = ("method.sft.rounds=1", "method.rl.rounds=1", *all_of_them)
    told, shared = (guarantee(align(name, *fixed, *short, f"partition.disjoint={name}")) for name in ("true", "false"))
    assert told["epsilon"] == pytest.approx(max(told["epsilon_by_phase"].values()), rel=1e-6)
    assert shared["epsilon"] > 1.2 * max(shared["epsilon_by_phase"].values())
    assert set(told["epsilon_by_phase"]) == set(shared["epsilon_by_phase"]) == {"sft", "rl"}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(GUARANTEES))
def test_every_guarantee_keeps_its_budget_and_hides_more_where_stages_share_users(align: Align, name: str) -> None:
    # All take part in all: what is spent without amplification is what the clients that were asked have spent.
    all_of_them = ("federation/sampler=fraction", "federation.sampler.fraction=1", *GUARANTEES[name])
    apart = guarantee(align("apart", *all_of_them))
    shared = guarantee(align("shared", *all_of_them, "partition.disjoint=false"))
    for told in (apart, shared):
        assert 0 < told["epsilon"] <= 8.0
    assert apart["epsilon"] == pytest.approx(max(apart["epsilon_by_phase"].values()), rel=1e-6)
    assert shared["epsilon"] > 1.05 * max(shared["epsilon_by_phase"].values())


@pytest.mark.slow
def test_what_the_stages_keep_frozen_gets_no_noise(align: Align) -> None:
    """Noise on the reference or the reward model would be noise that hides nothing and harms all."""
    noise = ("privacy=central", "privacy.epsilon=null", "privacy.noise_multiplier=1", SEEDED)
    result = align("run", "method=dprlhf_preferences", *noise, "model.freeze_a=true")
    states = {name: final_state(result, name) for name in ("sft", "reward", "rl")}
    for name, tensor in states["sft"].items():
        assert bool((states["rl"][f"reference/{name}"] == tensor).all())
        if ".lora_A." in name:
            assert all(bool((states[stage][name] == tensor).all()) for stage in ("reward", "rl"))
        else:
            assert bool((states["rl"][name] != tensor).any())
    for name, tensor in states["reward"].items():
        assert bool((states["rl"][f"reward/{name}"] == tensor).all())


def test_what_would_break_the_guarantee_is_refused_before_anything_runs(align: Align, tmp_path: Path) -> None:
    for change in ("method.rl.algorithm.epochs=2", "method.rl.algorithm.whiten=true"):
        with pytest.raises(UserError, match=r"privacy\.local"):
            align("refused", *GUARANTEES["local_user"], change)
    assert not (tmp_path / "refused" / "metrics.jsonl").exists()


# Law 8.


@dataclass(frozen=True)
class World:
    """Where the options are tried."""

    folder: Path

    @functools.cache  # noqa: B019 - lives as long as its module's tests
    def outcome(self, *overrides: str) -> Outcome:
        """Run the stages on a few clients without an engine, and evaluate each at its end."""
        resolved = resolve(overrides_of(self.folder, *overrides))
        config, site = parse(resolved), open_site(to_json(resolved), {})
        everybody = [site.data.shard(client.name) for client in site.data.clients]
        tensors: dict[str, Tensor] = {}
        metrics: dict[str, float] = {}
        artefacts: dict[str, State] = {}
        for phase in site.phases:
            own = [s for s in everybody if s.role is Role.TRAIN and s.stages.get(phase.stage or "")][:2]
            runner: Any = Federation(phase, config.federation.server_optimizer, config.seed, artefacts)
            artefacts[phase.name] = runner.run(own)
            tensors |= {f"{phase.name}/{name}": tensor for name, tensor in artefacts[phase.name].items()}
            (unseen,) = (s for s in everybody if s.role is not Role.TRAIN)
            told = total([phase.evaluate(artefacts[phase.name], unseen, Streams(config.seed))])
            found = phase.summarise(decode(told.scalars), told.tensors)
            metrics |= {f"{phase.name}/{name}": value for name, value in found.items()}
        return Outcome(tensors, metrics)


@pytest.fixture(scope="module")
def options_world(folder: Path) -> World:
    return World(folder)


ONE = "method.sft.rounds=1 method.rl.rounds=1"
ALONE = f"{ONE} method.sft=null"
JUDGE = "method.evaluation.judge={_target_:fedalign.methods.text_reward.Vader,scored:text}"
PEOPLE = f"method=dprlhf_preferences {ONE} method.reward_model.rounds=1"
CHANGES = [
    f"{ONE} -> {change}"
    for change in (
        "method.lengths.prompt=3",
        "method.lengths.response=4",
        "method.sft.batch=2",
        "method.sft.local.steps=3",
        "method.sft.local.lr=0.01",
        "method.sft.local.optimizer=sgd",
        "method.sft.local.proximal_mu=1",
        "method.sft.local.max_grad_norm=0.01",
        "method.sft=null",
        "method.rl=null",
        "method.evaluation.prompts=2",
        "method.evaluation.temperature=0",
        "method.evaluation.rouge=false",
        "model.rank=3",
        "model.alpha=9",
        "model.dropout=0.4",
        "model.freeze_a=true",
        "partition.disjoint=false",
        "data.words=3",
        "seed=1",
    )
] + [
    "method.sft.rounds=1 -> method.sft.rounds=2",
    "method.rl.rounds=1 -> method.rl.rounds=2",
    f"{ONE} -> {JUDGE}",
    f"{ONE} {JUDGE} -> method.evaluation.baseline=response",
    *(
        f"{ALONE} -> {change}"
        for change in (
            "method.rl.batch=2",
            "method.rl.local.steps=4",
            "method.rl.local.lr=0.01",
            "method.rl.local.optimizer=sgd",
            "method.rl.beta=5",
            "method.rl.reward_scale=3",
            "method.rl.temperature=0.5",
            "method.rl.algorithm.epochs=2",
            "method.rl.algorithm.minibatches=2",
            "method.rl.algorithm.gamma=0.5",
            "method.rl.algorithm.lam=0.2",
            "method.rl.algorithm.value_weight=3",
            "method.rl.algorithm.whiten=true",
            "method=dprlhf_rloo",
            "method=dprlhf_grpo",
            "method/algorithm@method.rl.algorithm=rloo",
        )
    ),
    # Ratios, values and weights must have moved before these matter.
    f"{ALONE} method.rl.algorithm.epochs=2 method.rl.local.lr=0.05 -> method.rl.algorithm.clip=0.01",
    f"{ALONE} method.rl.algorithm.epochs=2 method.rl.local.lr=0.05 -> method.rl.algorithm.value_clip=null",
    f"{ALONE} method.rl.algorithm.lam=0.5 method.rl.local.steps=4 method.rl.local.lr=0.05 method.rl.beta=1 -> "
    "method.rl.algorithm.place=token",
    "method=dprlhf_rloo method.sft=null method.rl.rounds=1 -> method.rl.algorithm.completions=3",
    "method=dprlhf_rloo method.sft=null method.rl.rounds=1 -> method.rl.algorithm.baseline=grpo",
    "method.sft=null method.rl.local.lr=0.05 -> "
    "method.rl.adaptive={_target_:fedalign.methods.kl_control.AdaptiveKL,target:0.01,horizon:10}",
    f"{ALONE} method.rl.rounds=2 -> method.rl.local.optimizer_state=persist",
    f"{PEOPLE} -> method.reward_model.batch=2",
    f"{PEOPLE} -> method.reward_model.local.steps=3",
    f"{PEOPLE} -> method.reward_model.local.lr=0.01",
    f"{PEOPLE} -> method.rl=null",
    f"{PEOPLE} -> data.noise=0.4",
]
FAST = CHANGES[::12]


@pytest.mark.parametrize("change", mostly_slow(CHANGES, FAST))
def test_an_option_changes_what_is_learnt_or_measured(options_world: World, change: str) -> None:
    # Before the arrow stands what it takes for the option to matter; what follows replaces it.
    given, _, new = change.partition(" -> ")
    key = new.partition("=")[0]
    before = given.split()
    after = [*(o for o in before if o.partition("=")[0] != key and not o.startswith(f"{key}.")), *new.split()]
    one, other = options_world.outcome(*before), options_world.outcome(*after)
    assert differ(one, other) or one.metrics != other.metrics


def test_the_comparison_can_tell_no_change_from_a_change(folder: Path) -> None:
    one, other = (World(folder).outcome(*ONE.split(), f"name={name}") for name in ("a", "b"))
    assert not differ(one, other)
    assert one.metrics == other.metrics
