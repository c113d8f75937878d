"""The privacy experiment: arms differ in privacy only, runs are read as they are, the README is what was recorded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedalign.config import RunConfig, parse, resolve
from fedalign.data.subsample_partition import Subsamples
from fedalign.federation.sampling import CyclicSampler, PoissonSampler
from fedalign.methods.pluralllm import PluralLLM
from fedalign.privacy.base import NoPrivacy
from fedalign.privacy.protection import Protection
from fedalign.run import start
from simulations.privacy.arms import (
    ARMS,
    DELTA,
    EPSILONS,
    FAMILIES,
    LEVELS,
    REPORTED,
    SMOOTHING,
    TUNING,
    overrides,
    replaced,
)
from simulations.privacy.plots import curve_plot
from simulations.privacy.record import SeedResult, from_json
from simulations.privacy.results import read_all, read_run, with_tables
from simulations.privacy.run import tasks
from simulations.privacy.score import SCORE, unseen_scores
from simulations.privacy.tables import tables
from simulations.records import to_json

FOLDER = Path(__file__).resolve().parents[2] / "simulations" / "privacy"
RESULT = SeedResult(0.75, 0.7, 0.7, {"China": 0.7, "Japan": 0.8}, 3.99, 1.1, 111.0, 40.0)


@pytest.fixture(scope="module")
def configs() -> dict[str, RunConfig]:
    return {arm.name: parse(resolve([*overrides(arm, "survey.csv")])) for arm in ARMS}


def test_every_arm_scores_the_same_unseen_countries_over_the_same_clients(configs: dict[str, RunConfig]) -> None:
    partitions = {config.partition for config in configs.values()}
    assert len(partitions) == 1
    (partition,) = partitions
    assert isinstance(partition, Subsamples)
    assert partition.unseen == REPORTED
    assert not set(REPORTED) & set(TUNING)


@pytest.mark.parametrize("family", [family.name for family in FAMILIES])
def test_arms_of_a_family_differ_in_privacy_only(configs: dict[str, RunConfig], family: str) -> None:
    own = {level: configs[f"{family}_{level}"] for level in LEVELS}
    for epsilon in EPSILONS:
        privacy = own[f"eps{epsilon}"].privacy
        assert isinstance(privacy, Protection)
        assert (privacy.epsilon, privacy.delta, privacy.noise_multiplier) == (epsilon, DELTA, None)
    clipped = own["clip"].privacy
    assert isinstance(clipped, Protection)
    assert (clipped.epsilon, clipped.noise_multiplier) == (None, 0.0)
    assert isinstance(own["none"].privacy, NoPrivacy)
    first = own["eps1"]
    for level, config in own.items():
        assert (config.federation, config.model) == (first.federation, first.model)
        # What leans on noisy sums leans on them the less the noisier they are.
        smoothing = {} if family == "network" else {"smoothing": SMOOTHING[level]}
        assert config.method == replace(first.method, **smoothing)  # type: ignore[type-var]
    assert sorted(SMOOTHING.values(), reverse=True) == [SMOOTHING[level] for level in LEVELS]


def test_trained_arms_have_equal_rounds_and_local_steps(configs: dict[str, RunConfig]) -> None:
    trained = {name: config for name, config in configs.items() if isinstance(config.method, PluralLLM)}
    assert len(trained) == 2 * len(LEVELS) + 2
    assert len({(config.method.local, config.method.episode) for config in trained.values()}) == 1  # type: ignore[attr-defined]
    assert len({(config.federation.rounds, config.federation.server_optimizer) for config in trained.values()}) == 1
    samplers = {config.federation.sampler for config in trained.values()}
    # As many clients a round on average, by their coins or in fixed groups.
    assert samplers == {PoissonSampler(0.1), CyclicSampler(10)}


def test_a_later_override_replaces_an_earlier_one() -> None:
    assert replaced(["a=1", "+b=2", "c=3"], ["b=4", "c=5"]) == ("a=1", "b=4", "c=5")


def test_runs_come_seed_by_seed(tmp_path: Path) -> None:
    todo = tasks(ARMS, "survey.csv", 2, tmp_path)
    assert len({task.directory for task in todo}) == 2 * len(ARMS)
    assert [task.overrides[-1] for task in todo] == ["seed=0"] * len(ARMS) + ["seed=1"] * len(ARMS)


SMALL = (
    "data.groups=6",
    "data.questions=40",
    "partition=subsamples",
    "partition.unseen=2",
    "method.prior=none",
    "federation.rounds=2",
    "method.local.steps=1",
    "model.layers=1",
    "privacy=central",
    "privacy.noise_multiplier=1",
    "privacy.epsilon=null",
    "privacy/randomness=seeded",
    "federation/sampler=poisson",
)


def test_a_run_is_read_and_its_model_scores_as_the_run_did(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    summary = start([*SMALL, f"output='{directory}'"]).summary
    result = read_run(directory)
    told = {group: values[SCORE] for group, values in summary.groups.items() if SCORE in values}
    assert len(told) == 2
    assert unseen_scores(directory) == pytest.approx(told, abs=1e-6)
    assert result.groups == pytest.approx(told, abs=1e-6)
    assert result.score == pytest.approx(sum(told.values()) / len(told), abs=1e-6)
    assert result.worst == min(result.groups.values())
    assert result.untrained is not None
    assert result.untrained != result.score
    assert result.noise_multiplier == 1.0
    assert result.epsilon is not None and result.epsilon > 1
    assert result.clients > 1


def test_a_run_that_withholds_its_metrics_is_scored_by_its_model(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    start([*SMALL, "privacy/metrics=withheld", f"output='{directory}'"])
    result = read_run(directory)
    assert len(result.groups) == 2
    assert result.untrained is None
    assert 0 < result.worst <= result.score < 1


def found() -> dict[str, dict[int, SeedResult]]:
    """Two seeds of some arms, whose scores move with the seed alike."""

    def seeds(score: float, noise: float | None) -> dict[int, SeedResult]:
        return {s: replace(RESULT, score=score + s / 10, noise_multiplier=noise, untrained=0.5) for s in (0, 1)}

    return {
        "uniform": seeds(0.5, None),
        "network_eps4": seeds(0.7, 1.1),
        "network_none": seeds(0.8, None),
        "mean_eps4": seeds(0.6, 0.9),
        "network_distributed": {0: replace(RESULT, score=0.65)},
    }


def test_tables_hold_means_and_paired_differences() -> None:
    text = tables(found())
    lines = {line.split(" | ")[0]: line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")}
    # Two seeds 0.1 apart: half an interval is 12.7062 standard errors of 0.05.
    assert "| federated GPO (PluralLLM) | – | – | 0.7500 ± 0.6353 | – | – | 0.8500 ± 0.6353 |" in text
    assert lines["| network − mean"][3] == "+0.1000 ± 0.0000"
    assert lines["| network − uniform"][6] == "+0.3000 ± 0.0000"
    assert lines["| prior − mean"][1:] == ["–"] * 6
    assert lines["| federated GPO (PluralLLM), epsilon 4, distributed (seeds: 1)"][1] == "0.6500"
    assert lines["| network_distributed − network_eps4"][1] == "-0.0500"
    assert lines["| untrained network"][1] == "0.5000 ± 0.0000"
    assert "| 1.10 |" in text


@pytest.mark.usefixtures("real_plots")
def test_results_survive_their_file_and_are_drawn() -> None:
    assert from_json(to_json(found())) == found()
    assert curve_plot(found()).startswith(b"\x89PNG")
    assert curve_plot({}).startswith(b"\x89PNG")


def test_unfinished_runs_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "network_eps4" / "seed-0").mkdir(parents=True)
    assert read_all(tmp_path) == {}


def test_a_readme_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="no <!-- tables -->"):
        with_tables("text", {})


def test_readme_and_tables_are_those_of_the_recorded_results() -> None:
    text = (FOLDER / "results" / "results.json").read_text()
    recorded: dict[str, Any] = json.loads(text)
    for family in FAMILIES:
        for level in LEVELS:
            assert len(recorded[f"{family.name}_{level}"]) >= 3
    assert (FOLDER / "results" / "table.md").read_text() == tables(from_json(text))
    readme = (FOLDER / "README.md").read_text()
    assert with_tables(readme, from_json(text)) == readme


def test_recorded_runs_kept_their_budget() -> None:
    recorded = from_json((FOLDER / "results" / "results.json").read_text())
    for arm in ARMS:
        for result in recorded.get(arm.name, {}).values():
            budget = {"adaptive": 4.0, "distributed": 4.0}.get(arm.level)
            if arm.level.startswith("eps"):
                budget = float(arm.level.removeprefix("eps"))
            assert (result.epsilon is None) == (budget is None)
            if budget is not None and result.epsilon is not None:
                assert 0.97 * budget < result.epsilon <= budget
