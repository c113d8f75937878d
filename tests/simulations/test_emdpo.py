"""The experiments on EM-DPO: arms differ in what they say, exact numbers are right, the README is what was recorded."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedalign.config import RunConfig, parse, resolve
from fedalign.data.linear_rankings import LinearRankings
from fedalign.methods.emdpo import EMDPO
from fedalign.methods.type_start import ClusteredStart, EqualStart, RandomStart
from fedalign.rng import Streams
from fedalign.run import start
from simulations.emdpo.arms import (
    CHOSEN,
    EXPERIMENTS,
    FEDERATED_JUDGMENTS,
    FORMS,
    JUDGMENTS,
    REAL,
    TYPES,
    VARIANTS,
    chosen,
    overrides,
)
from simulations.emdpo.exact import alike, divergence, middle_first, won
from simulations.emdpo.plots import gain, identifiability_plot
from simulations.emdpo.real import differences
from simulations.emdpo.record import SeedResult, from_json
from simulations.emdpo.results import read_all, read_run, with_tables
from simulations.emdpo.run import Task, execute, tasks
from simulations.emdpo.tables import federated, identifiability, real, tables, toy
from simulations.emdpo.tuning import best
from simulations.records import to_json

FOLDER = Path(__file__).resolve().parents[2] / "simulations" / "emdpo"


COMPARED = {
    "toy": ("pair_1", "pair_8", "best_1", "full_1"),
    "federated": tuple(f"{name}_8" for name in VARIANTS),
    "real": ("e2e_k1", "e2e_k2", "e2e_k4", "llmfao_k1", "llmfao_k2"),
}


@pytest.fixture(scope="module")
def configs() -> dict[str, RunConfig]:
    return {
        f"{name}/{arm.name}": parse(resolve([*overrides(arm, "folder")]))
        for name, compared in COMPARED.items()
        for arm in chosen(EXPERIMENTS[name], compared)
    }


def method_of(config: RunConfig) -> EMDPO:
    assert isinstance(config.method, EMDPO)
    return config.method


def test_the_toy_varies_what_is_seen_alone(configs: dict[str, RunConfig]) -> None:
    own = {name: config for name, config in configs.items() if name.startswith("toy/")}
    assert len({arm.name for arm in EXPERIMENTS["toy"].arms}) == len(FORMS) * len(JUDGMENTS)
    assert len({(config.method, config.federation, config.model) for config in own.values()}) == 1
    worlds = {
        replace(config.data, form="pair", responses=2, train_judgments=1)
        for config in own.values()
        if isinstance(config.data, LinearRankings)
    }
    (world,) = worlds
    assert (world.annotators, world.types, world.dimension) == (300, 2, 4)


def test_federated_variants_differ_in_what_their_names_say(configs: dict[str, RunConfig]) -> None:
    soft = configs["federated/soft_8"]
    assert soft.federation.rounds == 150
    assert isinstance(method_of(soft).start, RandomStart)
    assert method_of(soft).folds.cross_fit
    for name in VARIANTS:
        config = configs[f"federated/{name}_8"]
        assert config.data == soft.data
        if name in ("equal", "hard", "steps_1", "steps_20"):
            assert config.federation == soft.federation
            assert config.method != soft.method
        else:
            assert config.method == soft.method
    assert method_of(configs["federated/equal_8"]).start == EqualStart(demonstration=True)
    assert configs["federated/everybody_8"].federation.sampler != soft.federation.sampler
    assert len(EXPERIMENTS["federated"].arms) == len(VARIANTS) * len(FEDERATED_JUDGMENTS)


def test_real_arms_differ_in_types_and_what_was_chosen_for_them(configs: dict[str, RunConfig]) -> None:
    for source in REAL:
        assert set(CHOSEN[source]) == set(TYPES)
        own = [configs[f"real/{source}_k{types}"] for types in TYPES if f"real/{source}_k{types}" in configs]
        assert len({config.partition for config in own}) == 1
        assert len({config.data for config in own}) == 1
        assert all(isinstance(method_of(config).start, ClusteredStart) for config in own)
        assert len({replace(method_of(config), types=2, local=method_of(own[0]).local) for config in own}) == 1


def test_pairs_cannot_tell_what_rankings_of_three_can() -> None:
    assert won(0.0) == won(3.0) == pytest.approx(0.5)
    assert middle_first(0.0) == pytest.approx(1 / 3)
    assert middle_first(3.0) == pytest.approx(1 / (1 + 2 * math.cosh(3.0))) == pytest.approx(0.047, abs=5e-4)
    assert alike(0.0) == pytest.approx(0.5)
    assert alike(3.0) == pytest.approx(0.91, abs=5e-3)


@pytest.mark.parametrize("gap", [0.5, 1.0, 3.0])
def test_divergence_of_what_pairs_and_rankings_say(gap: float) -> None:
    assert divergence("pair", 1, gap) == pytest.approx(0.0, abs=1e-12)
    middle = middle_first(gap)
    shares = [middle, (1 - middle) / 2, (1 - middle) / 2]
    assert divergence("best", 1, gap) == pytest.approx(math.log(3) + sum(p * math.log(p) for p in shares))
    assert divergence("full", 1, gap) > divergence("best", 1, gap) > 0
    assert divergence("pair", 2, gap) > 0
    for form in ("pair", "best", "full"):
        assert divergence(form, 2, 0.0) == pytest.approx(0.0, abs=1e-12)


def test_drawn_judgments_have_the_exact_probabilities() -> None:
    config = parse(
        resolve(
            [
                "method=emdpo",
                "data=linear_rankings",
                "data.population=mirrored",
                "data.form=best",
                "data.responses=3",
                "data.scale=1.5",
                "data.annotators=100",
                "data.train_judgments=50",
            ]
        )
    )
    assert isinstance(config.data, LinearRankings)
    judged = [ranking for ranking in config.data.load(Streams(0)).rankings if ranking.split == "train"]
    middle = [float(r.responses[r.tiers.index(0)].split()[0]) == 0.0 for r in judged]
    p = middle_first(1.5)
    assert np.mean(middle) == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / len(middle)))


def test_runs_come_seed_by_seed(tmp_path: Path) -> None:
    todo = tasks(EXPERIMENTS["toy"], tmp_path, "data", [0, 1])
    arms = EXPERIMENTS["toy"].arms
    assert len({task.directory for task in todo}) == 2 * len(arms)
    assert [task.overrides[-1] for task in todo] == ["seed=0"] * len(arms) + ["seed=1"] * len(arms)
    assert [arm.name for arm in chosen(EXPERIMENTS["toy"], ["pair_8"])] == ["pair_8"]


SMALL = (
    "data.annotators=12",
    "data.dimension=2",
    "encoder.size=2",
    "federation.rounds=2",
    "federation.evaluate_every=2",
)


def test_a_run_is_scored_by_its_model_and_its_world(tmp_path: Path) -> None:
    (arm,) = chosen(EXPERIMENTS["toy"], ["full_16"])
    kept = [one for one in overrides(arm, "data") if one.partition("=")[0] not in {s.partition("=")[0] for s in SMALL}]
    directory = tmp_path / "toy" / "full_16" / "seed-0"
    execute(Task(directory, (*kept, *SMALL, "seed=0"), ("bayes", "fresh", "people")))
    result = read_run(directory)
    # Sixteen complete rankings of an annotator with sharp utilities leave little doubt to who knows the types.
    assert result.scores["bayes_accuracy"] >= 0.9
    assert result.scores["fresh_log_likelihood"] < 0
    totals = [value for name, value in result.scores.items() if name.startswith("total/")]
    judged = [value for name, value in result.scores.items() if name.startswith("n/")]
    assert judged == [4.0] * 12
    assert sum(totals) / sum(judged) == pytest.approx(result.scores["test/log_likelihood"], abs=1e-5)
    written = (directory / "scores.json").stat().st_mtime_ns
    execute(Task(directory, ("nonsense",), ("bayes",)))
    assert (directory / "scores.json").stat().st_mtime_ns == written
    assert read_all(tmp_path)["toy"]["full_16"][0] == result


def scored(**scores: float) -> SeedResult:
    return SeedResult(scores, 1.0)


def test_tables_hold_means_and_paired_differences() -> None:
    found = {
        "pair_8": {
            s: SeedResult({"test/type_accuracy": 0.9 + s / 10, "bayes_accuracy": 0.95 + s / 10}, 1.0) for s in (0, 1)
        }
    }
    assert "| pairs, ours | – | – | – | 0.950 | – |" in toy(found)
    assert "| pairs, ours − known | – | – | – | -0.050 ± 0.000 | – |" in toy(found)
    assert "| soft, 5 local steps | 0.886 | 0.950 (0.900) | -0.050 ± 0.000 | 0.966 |" in federated(
        {"soft_4": found["pair_8"]}
    ).replace(" (seeds: 2 and 0)", "")
    fresh = {f"best_b1_k{types}": {s: scored(fresh_log_likelihood=s + types / 100) for s in (0, 1)} for types in (1, 2)}
    assert gain(fresh, "best", 1) == pytest.approx({0: 0.01, 1: 0.01})
    assert "+0.0100 ± 0.0000" in identifiability(fresh)
    assert identifiability_plot(fresh).startswith(b"\x89PNG")
    assert identifiability_plot({}).startswith(b"\x89PNG")


def test_the_bootstrap_is_over_annotators() -> None:
    def arm(gains: list[float]) -> dict[int, SeedResult]:
        totals = {f"total/{i}": -10 + gain for i, gain in enumerate(gains)}
        return {s: SeedResult({**totals, **{f"n/{i}": 10.0 for i in range(len(gains))}}, 1.0) for s in (0, 1)}

    found = {"e2e_k1": arm([0.0] * 40), "e2e_k2": arm([1.0] * 40), "e2e_k3": arm([4.0] * 20 + [-4.0] * 20)}
    same = differences(found, "e2e_k2", "e2e_k1")
    assert same is not None
    assert (same.mean, same.low, same.high) == pytest.approx((0.1, 0.1, 0.1))
    torn = differences(found, "e2e_k3", "e2e_k1")
    assert torn is not None
    # Forty draws of +-0.4: a standard error of 0.4 / sqrt(40).
    assert torn.mean == pytest.approx(0.0)
    assert torn.high == pytest.approx(1.96 * 0.4 / math.sqrt(40), rel=0.1)
    assert differences(found, "e2e_k4", "e2e_k1") is None
    assert "+0.1000 [+0.1000, +0.1000]" in real(found, "e2e")


def test_results_survive_their_file() -> None:
    found = {"arm": {0: scored(a=0.5), 3: scored(b=1.0)}}
    assert from_json(to_json(found)) == found


def test_readme_and_tables_are_those_of_the_recorded_results() -> None:
    recorded = {name: from_json((FOLDER / "results" / f"{name}.json").read_text()) for name in EXPERIMENTS}
    assert (FOLDER / "results" / "table.md").read_text() == tables(recorded)
    readme = (FOLDER / "README.md").read_text()
    assert with_tables(readme, tables(recorded)) == readme


def test_what_was_chosen_is_what_did_best_in_the_recorded_search() -> None:
    recorded = from_json((FOLDER / "results" / "tuning.json").read_text())
    for source in REAL:
        for types in TYPES:
            assert CHOSEN[source][types] == best(recorded, source, types)


def test_recorded_runs_hold_what_the_experiments_are_for() -> None:
    recorded = {name: from_json((FOLDER / "results" / f"{name}.json").read_text()) for name in EXPERIMENTS}
    shares = {
        arm: np.mean([r.scores["test/type_accuracy"] - r.scores["bayes_accuracy"] for r in seeds.values()])
        for arm, seeds in recorded["federated"].items()
    }
    assert abs(shares["soft_8"]) <= 0.01
    assert all(r.scores["test/type_accuracy"] < 0.6 for r in recorded["federated"]["equal_8"].values())
    assert np.mean(list(gain(recorded["identifiability"], "best", 3).values())) > 0.1
    assert abs(np.mean(list(gain(recorded["identifiability"], "pair", 3).values()))) < 0.01


def test_the_symmetric_start_is_refused_without_a_demonstration(tmp_path: Path) -> None:
    (arm,) = chosen(EXPERIMENTS["federated"], ["equal_8"])
    kept = [one for one in overrides(arm, "data") if not one.startswith("method.start.demonstration")]
    with pytest.raises(Exception, match="stay alike"):
        start([*kept, f"output='{tmp_path / 'run'}'"])
