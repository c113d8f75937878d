"""Law 8 for rankings: every option of the methods that tell types changes what is learnt or measured, or is refused."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from omegaconf import OmegaConf
from torch import Tensor

from fedalign.config import RunConfig, keys, options, parse, resolve, to_json
from fedalign.contribution import State
from fedalign.data.federated import FederatedData, Role
from fedalign.errors import RunFailed, UserError
from fedalign.methods.mmra import MIXTURE, REGRETS
from fedalign.methods.start_phase import CENTRES
from fedalign.methods.type_model import PRIOR, TYPES
from fedalign.site import open_site, setting
from tests.cases import mostly_slow
from tests.configs import composed
from tests.methods.ranking_worlds import Rounds, scores

WORLD = (
    "data=linear_rankings",
    "data.annotators=8",
    "data.responses=3",
    "data.form=full",
    # Some judgments tie throughout and are dropped, so that annotators have unlike numbers of them.
    "data.ties=0.3",
    "data.scale=1",
    "data.probe_menus=4",
    "data.train_judgments=10",
    "data.test_judgments=3",
    "data.world_seed=5",
    "encoder.size=4",
    "model=linear_utility",
    "partition.unseen=2",
)
SMALL = {
    "method.batch": 2,
    "method.folds.validation": 0.2,
    "method.local.steps": 2,
    "method.local.lr": 0.5,
    "method.start.dimensions": 5,
    "method.start.iterations": 2,
    "method.start.restarts": 2,
    "method.start.rounds": 1,
    "method.start.local.steps": 3,
    "method.start.batch": 3,
    "method.assignment.names": ["type-1", "type-2"],
    "method.groups.names": ["type-1", "type-2"],
    "federation.rounds": 4,
}
"""What makes a run small, where a method has it."""
ARMS: dict[str, dict[str, Any]] = {
    "emdpo": {"method.types": 2},
    "group_robust_dpo": {},
    "emdpo_chosen": {"method.types": 2, "method.choices": [1, 2]},
}
"""What makes an arm small besides."""

LOCAL = (
    "steps=1",
    "optimizer=adam",
    "lr=2",
    "schedule=cosine final_lr=1 -> final_lr=0.1",
    "schedule=constant -> schedule=cosine_periodic period=3",
    "schedule=cosine_periodic period=3 -> period=2",
    "proximal_mu=1",
    "max_grad_norm=0.1",
)
COLLAPSED = "method.collapse.action=restart method.collapse.largest=0.5 method.collapse.patience=1 ->"
DELTAS = "method/start=deltas"

EMDPO = [
    "method.types=3",
    "method.top=1",
    "method.least_share=0.45",
    "method.least_mass=20",
    "method.prior_rate=0.9",
    "method.weight=judgments",
    "method.batch=3",
    "method.batch=null",
    "method.folds.cross_fit=false",
    "method.folds.assess=1",
    "method.folds.validation=0.4",
    "method.evaluation.known=1",
    "method.evaluation.context=1",
    "method.evaluation.judgments=1",
    f"{COLLAPSED} method.collapse.largest=1",
    f"{COLLAPSED} method.collapse.patience=2",
    f"{COLLAPSED} method.collapse.action=warn",
    f"{COLLAPSED} method.collapse.restarts=1",
    f"{COLLAPSED} method.collapse.scale=1",
    f"{COLLAPSED.replace('0.5', '1')} method.collapse.effective=1",
    "method.local.optimizer=adam -> method.local.optimizer_state=persist",
    "method.start.dimensions=2",
    "method.start.iterations=1",
    "method.start.restarts=6",
    "method.start.rounds=2",
    "method.start.spread=1",
    f"{DELTAS}",
    *(f"{DELTAS} -> method.start.{own}" for own in ("dimensions=2", "rounds=2", "spread=1", "batch=1")),
    "method/start=random",
    "method/start=random -> method.start.scale=2",
    "method/start=equal method.start.demonstration=true",
    "method/assignment=hardest",
    "method/assignment=clusters",
    "method/assignment=known",
    "method/assignment=known -> method.assignment.names=[type-2,type-1]",
    "method/assignment=per_judgment",
    "method/assignment=per_judgment -> method.assignment.iterations=1",
    "method/assignment=together method.types=1",
    "method.assignment.temper=1",
    "method.assignment.temper_rounds=2",
    "method/fair=none",
    "method.fair.basis=judgments",
    "method.fair.client_prompts=1",
    "method.fair.weights=[1,5]",
    "method.fair.normalise=true",
    *(f"method.local.steps=6 -> method/fair={rule}" for rule in ("utility", "shares")),
    *(
        f"method/fair={rule} -> method.fair.{own}"
        for rule in ("utility", "shares")
        for own in ("basis=judgments", "client_prompts=1")
    ),
    "method/single=log_linear",
]


def _prefixed(prefix: str, change: str) -> str:
    return " ".join(word if word == "->" else f"{prefix}{word}" for word in change.split())


CHANGES = [
    *(("emdpo", change) for change in EMDPO),
    *(("emdpo", _prefixed("method.local.", change)) for change in (*LOCAL, "max_grad_norm=null")),
    *(("emdpo", f"{DELTAS} " + _prefixed("method.start.local.", change)) for change in LOCAL if "->" in change),
    *(("emdpo", f"{DELTAS} -> " + _prefixed("method.start.local.", change)) for change in LOCAL if "->" not in change),
    ("group_robust_dpo", "method.groups.step=2"),
    ("group_robust_dpo", "method.groups.names=[type-1,type-2,type-3]"),
    ("emdpo_chosen", "method.choices=[2]"),
    ("emdpo_chosen", "method.local.steps=6 -> method.tie=9"),
]

NO_EFFECT = {
    "method.name": "names things",
    "method.start.local.optimizer_state": "nothing is kept between these trainings, whatever is set",
}
LANGUAGE_MODELS = ("method.beta", "method.likelihood", "method.lengths", "method.fair.writing", "method.fair.prompts")
"""Read where types are adapters of a language model, and tested with those."""


@dataclass(frozen=True)
class Outcome:
    """What came out of a run: clusters, types, their shares and their mixture, and what was measured."""

    tensors: State
    metrics: dict[str, float]


@functools.cache
def chosen(arm: str, *choices: str) -> dict[str, Any]:
    """Return the configuration of an arm and the parts that are chosen, made small."""
    resolved = resolve([f"method={arm}", *WORLD, *choices])
    for key, value in (SMALL | ARMS[arm]).items():
        if key in set(keys(resolved)):
            put(resolved, key, value)
    return resolved


def put(resolved: dict[str, Any], key: str, value: Any) -> None:
    """Change one value of a configuration."""
    *path, last = key.split(".")
    node = functools.reduce(lambda inner, name: inner[name], path, resolved)
    assert last in node, key
    node[last] = value


def configured(arm: str, *overrides: str) -> RunConfig:
    """Return the typed configuration under overrides of whole parts and of values."""
    resolved = copy.deepcopy(chosen(arm, *(o for o in overrides if "/" in o)))
    for override in overrides:
        key, _, value = override.partition("=")
        if "/" not in key:
            read: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]))
            put(resolved, key, read["value"])
    return parse(resolved)


@functools.cache
def world() -> FederatedData:
    return open_site(to_json(chosen("emdpo")), {}).data


@functools.cache
def outcome(arm: str, *overrides: str) -> Outcome:
    """Run an arm on the tiny world, with all clients in every round and no engine."""
    config = configured(arm, *overrides)
    everybody: Sequence[Any] = [world().shard(client.name) for client in world().clients]
    training = [shard for shard in everybody if shard.role is Role.TRAIN]
    artefacts: dict[str, State] = {}
    for phase in config.method.phases(setting(config)):
        artefacts[phase.name] = Rounds(phase, seed=config.seed, artefacts=artefacts).run(training)
    state = artefacts[phase.name]
    learnt = {n: t for n, t in state.items() if n.startswith(TYPES) or n in (CENTRES, PRIOR, MIXTURE, REGRETS)}
    return Outcome(learnt, {**scores(phase, state, everybody), **phase.report(state)})


def differ(one: Outcome, other: Outcome) -> bool:
    if one.tensors.keys() != other.tensors.keys() or one.metrics.keys() != other.metrics.keys():
        return True
    pairs: list[tuple[Tensor, Tensor]] = [(tensor, other.tensors[name]) for name, tensor in one.tensors.items()]
    if any(a.shape != b.shape or float((a - b).abs().max()) > 1e-6 for a, b in pairs):
        return True
    return any(abs(value - other.metrics[name]) > 1e-6 for name, value in one.metrics.items())


FAST = [
    *(
        ("emdpo", change)
        for change in (
            "method.types=3",
            "method.weight=judgments",
            "method.folds.cross_fit=false",
            f"{COLLAPSED} method.collapse.patience=2",
            DELTAS,
            "method/start=random",
            "method/assignment=hardest",
            "method/assignment=per_judgment",
            "method/fair=none",
            "method/fair=shares -> method.fair.client_prompts=1",
            "method/single=log_linear",
            "method.local.steps=1",
        )
    ),
    ("group_robust_dpo", "method.groups.step=2"),
    ("emdpo_chosen", "method.choices=[2]"),
]
"""Some of every arm."""


@pytest.mark.parametrize(("arm", "change"), mostly_slow(CHANGES, FAST))
def test_an_option_changes_what_is_learnt_or_measured(arm: str, change: str) -> None:
    # Before an arrow stands what it takes for the option to matter.
    given, _, new = change.rpartition("->")
    assert differ(outcome(arm, *given.split()), outcome(arm, *given.split(), *new.split()))


def test_the_comparison_can_tell_no_change_from_a_change() -> None:
    once = outcome("emdpo")
    outcome.cache_clear()
    assert once is not outcome("emdpo")
    assert not differ(once, outcome("emdpo"))


def test_an_alarm_may_end_the_run() -> None:
    given = COLLAPSED.removesuffix("->").split()
    with pytest.raises(RunFailed, match="types have collapsed for 1 rounds"):
        outcome("emdpo", *given, "method.collapse.action=fail")


@pytest.mark.parametrize(
    "override",
    ["method.fair.prompts=prompts.txt", "method/single=distilled", "method/start=equal", "method.fair.weights=[1]"],
)
def test_what_does_nothing_here_is_refused(override: str) -> None:
    with pytest.raises(UserError, match=r"method[./]"):
        outcome("emdpo", override)


def test_every_option_is_among_them() -> None:
    tried = {
        word.partition("=")[0].replace("/", ".") for _, change in CHANGES for word in change.split() if "=" in word
    }
    parts = [
        f"method/{part}={name}"
        for part in ("start", "assignment", "fair", "single")
        for name in options()[f"method/{part}"]
        if name != "distilled"
    ]
    resolved = [composed("method=emdpo", part) for part in parts]
    resolved += [composed(f"method={arm}") for arm in ("group_robust_dpo", "emdpo_chosen")]
    known = {f"method.{key}" for one in resolved for key in keys(one["method"]) if not key.endswith("_target_")}
    leaves = {key for key in known if not any(other.startswith(f"{key}.") for other in known)}
    assert leaves - tried - NO_EFFECT.keys() == {key for key in leaves if key.startswith(LANGUAGE_MODELS)}
