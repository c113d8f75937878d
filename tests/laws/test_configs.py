"""Law 8: every shipped config composes, validates and instantiates, and every option changes behaviour."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

from fedalign.build import build
from fedalign.config import conf_directory, options, parse, resolve
from fedalign.data.encoders.hashing import HashingEncoder
from fedalign.data.federated import DataSource, Kind, Layout
from fedalign.errors import UserError
from fedalign.methods.base import Method, Setting
from fedalign.models.base import ModelSpec
from fedalign.models.gpo import GPOModel
from fedalign.models.language_model import LanguageModelSpec
from fedalign.models.reward import RewardSpec
from fedalign.models.variational import VariationalSpec
from fedalign.run import start
from fedalign.run_end import Result
from tests.cases import mostly_slow
from tests.configs import composed, configured

from .conftest import TINY, Runner, final_state, residuals

CHOICES = [
    (group, name)
    for group, names in options().items()
    for name in names
    if group not in ("federation/sampler", "federation/server_optimizer", "federation/aggregation", "experiment")
    and not group.startswith(("privacy/", "method/"))
]


def test_every_yaml_is_a_choice_that_is_tested() -> None:
    files = [path for path in conf_directory().rglob("*.yaml") if path.parent != conf_directory()]
    assert len(files) == sum(len(names) for names in options().values())
    assert len(files) >= 25


NEEDS = {
    "data=survey_file": ["data.path=answers.jsonl"],
    "data=pairs_file": ["data.path=pairs.jsonl"],
    "data=llmfao": ["data.path=llmfao"],
    "model=reward_lora": ["encoder=tokens"],
    "model=variational_lora": ["encoder=tokens"],
    "population=trace": ["population.devices.path=trace.csv"],
}
"""What choices need besides."""


@functools.cache
def methods() -> dict[str, Method]:
    """Return every method that is shipped, under its own defaults."""
    return {name: configured(f"method={name}").method for name in options()["method"]}


def trains(method: Method, model: ModelSpec) -> bool:
    """Tell whether a method trains such a model; one that trains several kinds says so by its phases."""
    if method.kind is not Kind.RANKINGS:
        return method.model is not ModelSpec and isinstance(model, method.model)
    if isinstance(model, LanguageModelSpec):
        # Their phases read the model's weights.
        return True
    try:
        method.phases(Setting(4, 8, model, HashingEncoder("{option}", 8, False)))
    except UserError:
        return False
    return True


def suited(group: str, choice: str) -> list[str]:
    """Return the methods that a choice is made for, by what the part itself says; all where it says nothing."""
    known = methods()
    if group in ("data", "partition"):
        node = composed(choice, *NEEDS.get(choice, []))[group]
        part: Any = build(node, DataSource if group == "data" else Layout, group)
        return [name for name, method in known.items() if method.kind is part.kind]
    if group == "local":
        return [name for name, method in known.items() if hasattr(method, "local")]
    if group == "model":
        model = build(composed(choice, *NEEDS.get(choice, []))[group], ModelSpec, group)
        return [name for name, method in known.items() if trains(method, model)]
    return list(known)


# Every method, and a few of each group that is combined with them.
QUICK = [
    *((group, name) for group, name in CHOICES if group in ("method", "engine", "federation", "local")),
    *(("data", name) for name in ("synthetic_survey", "pairs_file", "rankings_file", "tldr")),
    *(("encoder", name) for name in ("minilm", "tokens")),
    ("logger", "tensorboard"),
    *(("model", name) for name in ("gpo", "reward", "variational_lora", "linear_utility", "gpt2_lora")),
    *(("partition", name) for name in ("by_group", "strict", "silos", "annotators")),
    *(("population", name) for name in ("phones", "trace")),
    *(("compression", name) for name in ("fp16", "topk_int8")),
    *(("privacy", name) for name in ("central", "distributed", "local_user")),
]


@pytest.mark.parametrize(("group", "name"), mostly_slow(CHOICES, QUICK))
def test_every_choice_of_every_group_builds_with_a_method_that_it_suits(group: str, name: str) -> None:
    choice = f"{group}={name}"
    needs = NEEDS.get(choice, [])
    if group == "method":
        configured(choice)
        return
    fitting = suited(group, choice)
    assert fitting
    # Composed already, where the default method suits it.
    method = () if "pluralllm" in fitting else (f"method={fitting[0]}",)
    configured(*method, choice, *needs)
    others = set(methods()) - set(fitting) - {"uniform", "question_mean", "length_rule"}
    if group == "model":
        # These refuse a model once their phases are laid out.
        others -= {name for name, method in methods().items() if method.kind is Kind.RANKINGS}
    for other in sorted(others)[:1]:
        refusal = rf"method={other} (learns from|trains a) .*choose another {group} |unknown key method\.{group};"
        with pytest.raises(UserError, match=refusal):
            parse(resolve([f"method={other}", choice, *needs]))


def test_methods_of_every_kind_and_model_are_shipped() -> None:
    assert {method.kind for method in methods().values()} == set(Kind)
    assert {GPOModel, RewardSpec, VariationalSpec} <= {method.model for method in methods().values()}


@pytest.mark.parametrize("name", options()["federation/sampler"])
def test_every_sampler_builds(name: str) -> None:
    parse(resolve([f"federation/sampler={name}"]))


PRIVACY_PARTS = [(group, name) for group, names in options().items() if group.startswith("privacy/") for name in names]


@pytest.mark.parametrize(("group", "name"), PRIVACY_PARTS)
def test_every_part_of_a_guarantee_builds(group: str, name: str) -> None:
    whole = {"open": "central", "withheld": "distributed", "skellam": "distributed"}.get(name, "central")
    noise = ["privacy.metrics.noise_multiplier=9"] if name == "summed" else []
    secret = ["privacy/metrics=withheld"] if name == "secagg" else []
    parse(resolve([f"privacy={whole}", f"{group}={name}", *noise, *secret]))


METHOD_PARTS = {
    "method/reward": ("method/reward", ["dprlhf", "dprlhf_rloo", "dprlhf_grpo"]),
    "method/algorithm": ("method/algorithm@method.rl.algorithm", ["dprlhf", "dprlhf_preferences"]),
    "method/aggregation": ("method/aggregation", ["plural_rlhf"]),
    "method/start": ("method/start", ["emdpo", "emdpo_chosen"]),
    "method/assignment": ("method/assignment", ["emdpo", "emdpo_in_sample"]),
    "method/fair": ("method/fair", ["emdpo", "fedem_dpo"]),
    "method/single": ("method/single", ["emdpo", "emdpo_in_sample"]),
    "method/experts": ("method/experts", ["pcm", "pcm_single"]),
    "method/experts/loss": ("method/experts/loss", ["pcm", "pcm_soups"]),
    "method/merging": ("method/merging", ["pcm", "pcm_prompted"]),
    "method/merging/control": ("method/merging/control", ["pcm"]),
    "method/merging/mixing": ("method/merging/mixing", ["pcm"]),
    "method/merging/learning": ("method/merging/learning", ["pcm"]),
    "method/merging/weighting": ("method/merging/weighting", ["pcm"]),
}
"""How parts of methods are chosen, and with which methods."""
PARTS_NEED = {
    "fitted_sentiment": ["method.reward.path=reviews.jsonl"],
    "together": ["method.types=1"],
    "equal": ["method.start.demonstration=true"],
}
"""What parts of methods need besides."""


def test_parts_of_methods_are_known() -> None:
    assert {group for group in options() if group.startswith("method/")} == set(METHOD_PARTS)


PARTS = [(group, name) for group in METHOD_PARTS for name in options().get(group, {})]
FIRST_PARTS = [next(part for part in PARTS if part[0] == group) for group in METHOD_PARTS]


@pytest.mark.parametrize(("group", "name"), mostly_slow(PARTS, FIRST_PARTS))
def test_every_part_of_a_method_builds_with_the_methods_that_have_it(group: str, name: str) -> None:
    choice, fitting = METHOD_PARTS[group]
    if name == "learnt":
        assert parse(resolve(["method=dprlhf_preferences", f"{choice}={name}"])).method.reward is None  # type: ignore[attr-defined]
        return
    chosen = (f"{choice}={name}", *PARTS_NEED.get(name, []))
    built: list[Any] = [configured(f"method={method}", *chosen).method for method in fitting]
    place = {"method/algorithm": "rl/algorithm"}.get(group, group.removeprefix("method/")).split("/")
    for method in built:
        part: Any = method
        expected = composed(f"method={fitting[0]}", *chosen)["method"]
        for field in place:
            part, expected = getattr(part, field), expected[field]
        assert type(part).__name__ == expected["_target_"].rpartition(".")[2]
        for key, value in expected.items():
            if key != "_target_" and not isinstance(value, dict):
                assert getattr(part, key) == (tuple(value) if isinstance(value, list) else value)
    with pytest.raises(UserError, match=rf"{choice}: the {group.rpartition('/')[0]} that is chosen has no such part"):
        resolve(["method=fedvpa", f"{choice}={name}"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=dprlhf", "method.rl.algoritm=1"], r"unknown key method\.rl\.algoritm.*method\.rl\.algorithm"),
        (["method=dprlhf", "method/reward=vadar"], r"method/reward=vadar: no such option.*vader"),
        (["method=dprlhf", "method/algorithm@method.rl.algorithm=pp"], r"method/algorithm=pp: no such option.*ppo"),
        (["method=dprlfh"], r"method=dprlfh: no such option.*dprlhf"),
    ],
)
def test_what_is_misspelt_in_a_method_s_parts_is_named(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve(overrides)


@pytest.mark.parametrize("name", options()["federation/server_optimizer"])
def test_every_server_optimizer_builds(name: str) -> None:
    parse(resolve([f"federation/server_optimizer={name}"]))


@pytest.mark.parametrize("name", options().get("experiment", {}))
def test_every_experiment_builds(name: str) -> None:
    parse(resolve([f"experiment={name}"]))


CHANGES = [
    "method.prior=none",
    "method.smoothing=3",
    "method.episode.min_questions=6",
    "method.episode.max_questions=20",
    "method.loss_reduction=sum",
    "method.weight=questions",
    "method.weight=points",
    "method.local.steps=3",
    "method.local.optimizer=sgd",
    "method.local.lr=0.002",
    "method.local.schedule=constant",
    "method.local.schedule=cosine_periodic",
    "method.local.final_lr=0.5",
    "method.local.optimizer_state=reset",
    "method.local.proximal_mu=1.0",
    "method.local.max_grad_norm=0.001",
    "model.width=8",
    "model.layers=2",
    "model.heads=1",
    "model.feedforward=8",
    "model.embed_depth=3",
    "local=fedprox",
    "federation.rounds=4",
    "federation/sampler=fraction",
    "federation/sampler=fixed federation.sampler.size=2",
    "federation/sampler=poisson",
    "federation/server_optimizer=fedavgm",
    "federation/server_optimizer=fedadam",
    "federation/server_optimizer=fedyogi",
    "federation.server_optimizer.lr=0.5",
    "method.weight=points federation.aggregation.client_weight=100",
    "partition=pooled partition.unseen=2 partition.min_questions=8",
    "partition=iid partition.unseen=2 partition.min_questions=8",
    "partition=dirichlet partition.unseen=2 partition.min_questions=8",
    "partition.test_fraction=0.3",
    "partition.holdout=last",
    "partition.unseen=1",
    "encoder.size=16",
    "encoder.word_pairs=false",
    "encoder.template='{option}'",
    "data.groups=7",
    "data.world_seed=8",
    "population=phones",
    "population=silos population.dropout=0.3",
    "compression=bf16",
    "compression=fp16",
    "compression=int8",
    "compression=topk",
    "compression=topk_int8",
]


FAST = [
    "method.prior=none",
    "method.episode.max_questions=20",
    "method.weight=questions",
    "method.local.steps=3",
    "method.local.schedule=cosine_periodic",
    "model.width=8",
    "federation.rounds=4",
    "federation/sampler=fixed federation.sampler.size=2",
    "federation/server_optimizer=fedadam",
    "partition=iid partition.unseen=2 partition.min_questions=8",
    "encoder.size=16",
    "population=phones",
    "compression=topk_int8",
]
"""Some of every part of a run."""


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return start([*TINY, f"output={tmp_path_factory.mktemp('reference') / 'run'}"])


@pytest.mark.parametrize("change", mostly_slow(CHANGES, FAST))
def test_an_option_changes_what_is_learnt(run: Runner, reference: Result, change: str) -> None:
    extra = ["method.local.period=3"] if "periodic" in change else []
    changed = final_state(run("changed", *change.split(), *extra))
    known = final_state(reference)
    alike = changed.keys() == known.keys() and all(changed[k].shape == known[k].shape for k in known)
    assert not alike or residuals(changed, known)[0] > 1e-7


@pytest.mark.parametrize(
    "change", ["method.evaluation.draws=2", "method.evaluation.context_questions=3", "method.evaluation.train=false"]
)
def test_evaluation_options_change_what_is_measured_and_nothing_else(
    run: Runner, reference: Result, change: str
) -> None:
    changed = run("changed", change)
    assert residuals(final_state(changed), final_state(reference)) == (0.0, 0.0)
    assert changed.summary.metrics != reference.summary.metrics


def test_periods_of_evaluation_and_saving_are_kept(run: Runner) -> None:
    from fedalign.report.metrics_log import read_metrics

    result = run("often", "federation.evaluate_every=2")
    measured = {
        m.round
        for m in read_metrics(result.directory / "metrics.jsonl")
        if m.phase == "gpo" and m.scope != "train" and m.name == "unseen/alignment_score"
    }
    assert measured == {0, 2, 4, 5}
    saved = {path.name for path in Path(result.directory / "checkpoints" / "clients").iterdir()}
    assert saved == {"1-4", "1-5"}
