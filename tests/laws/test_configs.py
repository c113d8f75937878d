"""Law 8: every shipped config composes, validates and instantiates, and every option changes behaviour."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedalign.config import conf_directory, options, parse, resolve

from .conftest import TINY, Runner, final_state, residuals

CHOICES = [
    (group, name)
    for group, names in options().items()
    for name in names
    if group not in ("federation/sampler", "federation/server_optimizer", "experiment")
]


def test_every_yaml_is_a_choice_that_is_tested() -> None:
    files = [path for path in conf_directory().rglob("*.yaml") if path.parent != conf_directory()]
    assert len(files) == sum(len(names) for names in options().values())
    assert len(files) >= 25


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_choice_of_every_group_builds(group: str, name: str) -> None:
    needs = {"data=survey_file": ["data.path=answers.jsonl"]}
    choice = f"{group}={name}"
    parse(resolve([choice, *needs.get(choice, [])]))


@pytest.mark.parametrize("name", options()["federation/sampler"])
def test_every_sampler_builds(name: str) -> None:
    parse(resolve([f"federation/sampler={name}"]))


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
    "federation=fedprox",
    "federation.rounds=4",
    "federation/sampler=fraction",
    "federation/sampler=fixed federation.sampler.size=2",
    "federation/sampler=poisson",
    "federation/server_optimizer=fedavgm",
    "federation/server_optimizer=fedadam",
    "federation/server_optimizer=fedyogi",
    "federation.server_optimizer.lr=0.5",
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
]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory):
    from fedalign.run import start

    return start([*TINY, f"output={tmp_path_factory.mktemp('reference') / 'run'}"])


@pytest.mark.parametrize("change", CHANGES)
def test_an_option_changes_what_is_learnt(run: Runner, reference, change: str) -> None:
    extra = ["method.local.period=3"] if "periodic" in change else []
    changed = final_state(run("changed", *change.split(), *extra))
    known = final_state(reference)
    alike = changed.keys() == known.keys() and all(changed[k].shape == known[k].shape for k in known)
    assert not alike or residuals(changed, known)[0] > 1e-7


@pytest.mark.parametrize(
    "change", ["method.evaluation.draws=2", "method.evaluation.context_questions=3", "method.evaluation.train=false"]
)
def test_evaluation_options_change_what_is_measured_and_nothing_else(run: Runner, reference, change: str) -> None:
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
