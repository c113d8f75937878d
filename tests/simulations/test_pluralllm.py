"""The PluralLLM experiment: its arms are valid configs of equal compute, and its README says what was recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedalign.config import parse, resolve
from fedalign.data.partition import ByGroup
from fedalign.methods.pluralllm import PluralLLM
from fedalign.metrics.record import Metric
from simulations.pluralllm.arms import FAIR, FAITHFUL, TRAINING, Arm, overrides
from simulations.pluralllm.results import SCORE, Curve, SeedResult, convergence, main_table, reached, read_curve
from simulations.pluralllm.run import tasks
from tests.configs import configured

FOLDER = Path(__file__).resolve().parents[2] / "simulations" / "pluralllm"
TRAINED = [arm for arm in FAIR if arm.name not in ("uniform", "question_mean")]


@pytest.mark.parametrize("arm", [*FAIR, *FAITHFUL], ids=lambda arm: arm.name)
def test_every_run_of_an_arm_is_a_valid_config(arm: Arm) -> None:
    for member in arm.members:
        config = configured(*overrides(arm, "survey.csv", 40), *member)
        assert config.data.name == "global_opinions"


def test_fair_arms_differ_in_nothing_but_partition_and_prior() -> None:
    methods = []
    for arm in TRAINED:
        config = configured(*overrides(arm, "survey.csv", 40), *arm.members[0])
        assert isinstance(config.method, PluralLLM)
        assert config.federation.rounds == 40
        method = config.method
        methods.append((method.local, method.episode, method.evaluation, config.model, config.encoder))
    assert all(other == methods[0] for other in methods)


def test_training_countries_are_those_of_the_partition() -> None:
    partition = parse(resolve(["partition=pluralllm"])).partition
    assert isinstance(partition, ByGroup)
    assert partition.train == TRAINING
    assert isinstance(partition.unseen, tuple)
    assert not set(partition.unseen) & set(TRAINING)


def test_local_training_is_one_federation_a_country(tmp_path: Path) -> None:
    todo = tasks([arm for arm in FAIR if arm.name == "local"], "survey.csv", 40, 2, tmp_path)
    assert len({task.directory for task in todo}) == 2 * len(TRAINING)
    assert sum("seed=1" in task.overrides for task in todo) == len(TRAINING)


def test_curve_adds_up_training_time_of_all_phases() -> None:
    def record(phase: str, round: int, name: str, value: float) -> Metric:
        return Metric(phase, round, "eval", None, name, value, 1.0)

    records = [
        record("question_prior", 0, SCORE, 0.6),
        record("question_prior", 1, "train_seconds", 2.0),
        record("question_prior", 1, SCORE, 0.7),
        record("gpo", 0, SCORE, 0.7),
        record("gpo", 1, "train_seconds", 3.0),
        record("gpo", 2, "train_seconds", 4.0),
        record("gpo", 2, SCORE, 0.8),
    ]
    assert read_curve(records) == Curve((0, 2), (0.7, 0.8), (2.0, 9.0))


def test_convergence_is_the_first_evaluation_above_the_target() -> None:
    curve = Curve((0, 5, 10), (0.5, 0.68, 0.7), (0.0, 1.0, 2.0))
    assert reached(curve, 0.68) == 1
    assert reached(curve, 0.9) is None

    def result(score: float) -> SeedResult:
        return SeedResult({"score": score}, {}, curve)

    found = {"uniform": {0: result(0.5)}, "x": {0: result(0.7)}}
    arm = Arm("x", "x", (), reference="x")
    values = convergence(arm, 0, found, steps_per_round=6)
    # 95 % of the gain is 0.69, 99 % is 0.698: both are made at the last evaluation only.
    assert values["rounds_to_95%"] == 10
    assert values["steps_to_99%"] == 60
    assert values["seconds_to_95%"] == 2.0


def test_the_table_is_that_of_the_recorded_results() -> None:
    recorded = json.loads((FOLDER / "results" / "results.json").read_text())
    assert recorded["seeds"] >= 5
    found = {
        name: {int(seed): SeedResult(r["metrics"], r["groups"], Curve(**r["curve"])) for seed, r in by.items()}
        for name, by in recorded["arms"].items()
    }
    table = (FOLDER / "results" / "table.md").read_text()
    assert main_table([*FAIR, *FAITHFUL], found) in table
    assert table in (FOLDER / "README.md").read_text()
