"""Law 8 for experts that are merged: every option changes what is learnt or measured, or is refused."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from fedalign.config import keys, options, parse, resolve, to_json
from fedalign.contribution import State, total
from fedalign.data.federated import Role
from fedalign.errors import UserError
from fedalign.metrics.record import decode
from fedalign.rng import Streams
from fedalign.site import open_site
from tests.methods.selectors import Federation

from .pcm_world import overrides_of, world
from .test_pair_options import Outcome, differ

MODEL = "{model}"
"""What stands for the folder of the model in a change."""
# Texts of the random model are five words at most, and its words tell little of the world's dimensions.
SHORT = ("method.dimensions.length.measure.middle=3", "method.dimensions.length.measure.half=2", "federation.rounds=2")

OFFLINE = "method/merging/learning=offline"
MIN_MAX, Q_FAIR = "method/merging/weighting=min_max", "method/merging/weighting=q_fair"
CONSTANT, LOG_LINEAR = "method/merging/control=constant", "method/merging/mixing=log_linear"
ALGORITHM = "method/algorithm@method.merging.learning.algorithm"
STATES = "method.merging.learning.coverage"
TWO = "method.merging.learning.algorithm.epochs=2"


def _algorithm(name: str, *changes: str, before: str = "") -> list[str]:
    given = f"{ALGORITHM}={name} {before}".rstrip()
    return [f"{given} -> method.merging.learning.algorithm.{change}" for change in changes]


CHANGES = [
    *(
        f"method.{change}"
        for change in (
            "lengths.prompt=3",
            "lengths.response=4",
            "dimensions.tone.sides=[criticism,praise]",
            "dimensions.style.sides=[ornate,plain]",
            "dimensions.length.sides=[short,long]",
            "dimensions.tone.scale=3",
            "dimensions.style.scale=3",
            "dimensions.length.scale=3",
            "dimensions.tone.measure.limit=3",
            "dimensions.style.measure.limit=3",
            "dimensions.length.measure.middle=2",
            "dimensions.length.measure.half=4",
            "top_tokens=3",
            "evaluation.prompts=2",
            "evaluation.temperature=0",
            "evaluation.temperature=0.5",
            "merging.rounds=1",
            "merging.rounds=0",
            "merging.batch=1",
            "merging.personal_bias=true",
            "merging.control.hidden=12",
            "merging.control.layers=2",
            "merging.control.heads=4",
            "merging.control.intermediate=12",
            "merging.control.preference=text",
            "merging.control.preference=id",
            f"merging.control.pretrained={MODEL}",
            "merging.learning.beta=5",
            "merging.learning.temperature=0.5",
            "merging.learning.algorithm.epochs=2",
            "merging.learning.algorithm.minibatches=2",
            "merging.learning.algorithm.eta=9",
            "merging.local.steps=4",
            "merging.local.optimizer=sgd",
            "merging.local.lr=0.01",
            "merging.local.schedule=cosine",
            "merging.local.optimizer_state=persist",
            "merging.local.proximal_mu=5",
            "merging.local.max_grad_norm=0.001",
        )
    ),
    "method.merging.local.schedule=cosine -> method.merging.local.final_lr=0.9",
    "method.merging.local.schedule=cosine_periodic -> method.merging.local.period=3",
    "method.top_tokens=3 -> method.floor=0.2",
    f"{STATES}.share=0",
    f"{STATES}.share=1 -> {STATES}.statements=['praise,plain']",
    f"{STATES}.share=1 -> {STATES}.concentration=0.5",
    CONSTANT,
    f"{CONSTANT} -> method.merging.control.width=3",
    LOG_LINEAR,
    OFFLINE,
    f"{OFFLINE} -> method.merging.learning.beta=3",
    MIN_MAX,
    f"{MIN_MAX} -> method.merging.weighting.step=3",
    f"{MIN_MAX} method.merging.weighting.step=50 -> method.merging.weighting.most=1.5",
    Q_FAIR,
    f"{Q_FAIR} -> method.merging.weighting.q=6",
    f"{Q_FAIR} method.merging.weighting.q=6 -> method.merging.weighting.least=0.9",
    *(f"{ALGORITHM}={name}" for name in ("ppo", "rloo", "grpo")),
    *_algorithm("ppo", "gamma=0.5", "lam=0.2", "value_weight=5", "whiten=true", "epochs=2", "minibatches=2"),
    # Ratios and values must have moved before these matter.
    *_algorithm("ppo", "clip=0.001", "value_clip=0.001", before=TWO),
    *_algorithm("ppo", "place=token", before="method.merging.learning.beta=1"),
    *_algorithm("rloo", "completions=3", "baseline=grpo"),
    *_algorithm("rloo", "clip=0.001", before=TWO),
    *_algorithm("grpo", "completions=3"),
]
FAST = CHANGES[3::9][:8]

NO_EFFECT = {
    "method.name": "names things",
    "method.evaluation.batch": "says how many texts are written at once",
    "method.merging.control.max_tokens": "refuses what is longer",
    "method.dimensions.tone.measure.filler": "no junk is among the random model's words",
}
ELSEWHERE = ("method.experts",)
"""Tested with the experts themselves."""


@dataclass(frozen=True)
class World:
    """Where the options are tried."""

    folder: Path

    @functools.cache  # noqa: B019 - lives as long as its module's tests
    def outcome(self, *overrides: str) -> Outcome:
        """Run the phases on two clients without an engine, and evaluate the last."""
        given = [each.replace(MODEL, str(self.folder / "model")) for each in (*SHORT, *overrides)]
        resolved = resolve(overrides_of(self.folder, *given))
        config, site = parse(resolved), open_site(to_json(resolved), {})
        everybody = [site.data.shard(client.name) for client in site.data.clients]
        training = [shard for shard in everybody if shard.role is Role.TRAIN][:2]
        (unseen,) = (shard for shard in everybody if shard.role is not Role.TRAIN)
        tensors: dict[str, Tensor] = {}
        artefacts: dict[str, State] = {}
        for phase in site.phases:
            runner: Any = Federation(phase, config.federation.server_optimizer, config.seed, artefacts)
            artefacts[phase.name] = runner.run(training)
            tensors |= {f"{phase.name}/{name}": tensor for name, tensor in artefacts[phase.name].items()}
        told = total([phase.evaluate(artefacts[phase.name], unseen, Streams(config.seed))])
        return Outcome(tensors, phase.summarise(decode(told.scalars), told.tensors))


@pytest.fixture(scope="module")
def options_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(world(tmp_path_factory.mktemp("pcm")))


@pytest.mark.parametrize("change", [c if c in FAST else pytest.param(c, marks=pytest.mark.slow) for c in CHANGES])
def test_an_option_changes_what_is_learnt_or_measured(options_world: World, change: str) -> None:
    # Before the arrow stands what it takes for the option to matter.
    given, _, new = change.rpartition("->")
    one, other = options_world.outcome(*given.split()), options_world.outcome(*given.split(), *new.split())
    assert differ(one, other) or one.metrics != other.metrics


def test_the_comparison_can_tell_no_change_from_a_change(options_world: World) -> None:
    once, again = (World(options_world.folder).outcome(f"name={name}") for name in ("a", "b"))
    assert not differ(once, again)
    assert once.metrics == again.metrics


def test_texts_are_the_same_however_many_are_written_at_once(options_world: World) -> None:
    one, other = (options_world.outcome(f"method.evaluation.batch={size}") for size in (2, 3))
    assert not differ(one, other)


def test_what_is_too_long_for_the_control_model_is_refused(options_world: World) -> None:
    with pytest.raises(UserError, match=r"method\.lengths\.prompt=5"):
        options_world.outcome("method.merging.control.max_tokens=9")


def test_every_option_is_among_them() -> None:
    tried = {word.partition("=")[0].replace("/", ".") for change in CHANGES for word in change.split() if "=" in word}
    parts = [
        f"method/merging/{part}={name}"
        for part in ("control", "mixing", "learning", "weighting")
        for name in options()[f"method/merging/{part}"]
    ]
    parts += [f"{ALGORITHM}={name}" for name in ("rebel", "ppo", "rloo", "grpo")]
    resolved = [resolve(["method=pcm", part]) for part in parts]
    known = {f"method.{key}" for one in resolved for key in keys(one["method"]) if not key.endswith("_target_")}
    leaves = {key for key in known if not any(other.startswith(f"{key}.") for other in known)}
    empty = {"method.merging.mixing", "method.merging.weighting"}
    left = leaves - tried - NO_EFFECT.keys() - empty
    assert left == {key for key in left if key.startswith(ELSEWHERE)}
    assert not NO_EFFECT.keys() - leaves
