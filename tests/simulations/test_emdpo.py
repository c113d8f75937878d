"""The experiments on EM-DPO: arms differ in what they say, exact numbers are right, the README is what was recorded."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedalign.config import RunConfig, parse, resolve
from fedalign.data.linear_rankings import LinearRankings
from fedalign.data.pair_vocabulary import CRITICISM, FILLER, ORNATE_ADVERBS, PRAISE
from fedalign.data.synthetic_rankings import SyntheticRankings
from fedalign.methods.emdpo import EMDPO
from fedalign.methods.type_start import ClusteredStart, EqualStart, RandomStart
from fedalign.rng import Streams
from fedalign.run import start
from simulations.emdpo.arms import (
    CHOSEN,
    DATA,
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
from simulations.emdpo.base import batch, one_thread
from simulations.emdpo.distil import PROMPTS as DISTILLED_FROM
from simulations.emdpo.distil import public_prompts
from simulations.emdpo.exact import alike, divergence, middle_first, won
from simulations.emdpo.language import BASE, LANGUAGE
from simulations.emdpo.language_tables import (
    ANNOTATORS,
    EQUALS,
    HINDSIGHT,
    MEAN,
    MIXED,
    WORST,
    base_of,
    hindsight,
    reference,
    regret,
    regret_among_equals,
    regrets,
    types_told,
    uneven,
    written,
)
from simulations.emdpo.language_tables import COMPARED as DIFFERENCES
from simulations.emdpo.plots import gain, identifiability_plot
from simulations.emdpo.policies import mixtures_of, parts_of, scored_prompts, utilities_of
from simulations.emdpo.real import differences
from simulations.emdpo.record import SeedResult, from_json
from simulations.emdpo.results import merged, read_all, read_run, with_tables, write_results
from simulations.emdpo.run import Task, execute, finished, tasks
from simulations.emdpo.tables import federated, identifiability, real, tables, toy
from simulations.emdpo.tuning import best
from simulations.records import to_json

FOLDER = Path(__file__).resolve().parents[2] / "simulations" / "emdpo"


FOLDERS = {DATA: "folder", BASE: "model"}
COMPARED = {
    "toy": ("pair_1", "pair_8", "best_1", "full_1"),
    "federated": tuple(f"{name}_8" for name in VARIANTS),
    "real": ("e2e_k1", "e2e_k2", "e2e_k4", "quality_k1", "llmfao_k1", "llmfao_k2"),
}


@pytest.fixture(scope="module")
def configs() -> dict[str, RunConfig]:
    return {
        f"{name}/{arm.name}": parse(resolve([*overrides(arm, FOLDERS)]))
        for name, compared in COMPARED.items()
        for arm in chosen(EXPERIMENTS[name], compared)
    }


@pytest.fixture(scope="module")
def language() -> dict[str, RunConfig]:
    return {arm.name: parse(resolve([*overrides(arm, FOLDERS)])) for arm in EXPERIMENTS["language"].arms}


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
    assert not method_of(soft).folds.cross_fit
    for name in VARIANTS:
        config = configs[f"federated/{name}_8"]
        assert config.data == soft.data
        if name in ("equal", "halves", "hard", "steps_1", "steps_20"):
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
    todo = tasks(EXPERIMENTS["toy"], tmp_path, FOLDERS, [0, 1])
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
    kept = [one for one in overrides(arm, FOLDERS) if one.partition("=")[0] not in {s.partition("=")[0] for s in SMALL}]
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


@pytest.mark.usefixtures("real_plots")
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


def made_up(shares: tuple[float, float], utilities: dict[str, tuple[float, float]]) -> SeedResult:
    """Return scores of a run with two true types, for praise and against it."""
    names = ("praise", "criticism")
    scores = {f"weight/shares/{k}": share for k, share in enumerate(shares) if share}
    scores |= {"share/praise": 0.75, "share/criticism": 0.25}
    for policy, values in utilities.items():
        scores |= {f"utility/{policy}/{name}": value for name, value in zip(names, values, strict=True)}
        scores |= {f"mean/junk/{policy}": 0.0, f"perplexity/{policy}": 2.0 + values[0]}
    return SeedResult(scores, 1.0)


def test_regret_is_what_the_best_policy_of_the_seed_has_more() -> None:
    one = made_up((1.0, 0.0), {"0": (0.75, -0.5), "base": (0.0, -0.25)})
    two = made_up((0.75, 0.25), {"0": (0.5, -1.0), "1": (-0.5, 1.0), "base": (0.0, -0.25), "log_linear": (0.25, 0.5)})
    two.scores.update({f"weight/{name}/{k}": 0.5 for name in ("mmra", "mmra_normalised", "maxmin") for k in (0, 1)})
    found = {"dpo_16": {11: one}, "em_16": {11: two}}
    assert [reference(found, "em_16", 11, name) for name in ("praise", "criticism")] == [0.75, 1.0]
    alone = regrets(found, "dpo_16", "shares")[11]
    assert alone == {"praise": 0.0, "criticism": 1.5, WORST: 1.5, MEAN: 0.75, ANNOTATORS: 0.375}
    mixture = regrets(found, "em_16", "mmra")[11]
    assert (mixture["praise"], mixture["criticism"], mixture[WORST]) == (0.75, 1.0, 1.0)
    assert regrets(found, "em_16", "log_linear")[11]["criticism"] == 0.5
    assert regrets(found, "em_430", "mmra") == {}
    # 0.25 + (1 - w) and 2 w are equal at w = 5 / 12.
    assert hindsight(two.scores, {"praise": 0.75, "criticism": 1.0}) == pytest.approx({"0": 5 / 12, "1": 7 / 12})
    assert regrets(found, "em_16", HINDSIGHT)[11][WORST] == pytest.approx(5 / 6)
    rows = regret(found)
    assert "| EM-DPO, mixed by shares, 1 seed | 0.50 | 1.50 | 1.50 | 1.00 | 0.75 |" in rows
    assert "| EM-DPO + MMRA − one DPO for all, 1 seed | +0.75 | -0.50 | -0.50 | +0.12 | +0.44 |" in rows
    assert "Cluster" not in rows
    # What was not scored has no row, and no part in a difference.
    assert "distilled" not in rows
    two.scores.update({"utility/distilled/praise": 0.0, "utility/distilled/criticism": 0.25})
    assert regrets(found, "em_16", "distilled")[11] == {
        "praise": 0.75,
        "criticism": 0.75,
        WORST: 0.75,
        MEAN: 0.75,
        ANNOTATORS: 0.75,
    }
    merge = "| EM-DPO, distilled at MMRA's weights − EM-DPO, log-linear merge at MMRA's weights, 1 seed |"
    assert f"{merge} +0.25 | +0.25 | +0.25 |" in regret(found)
    # The merge suits nobody's type better than a type's own policy, and is no type's.
    assert "| EM-DPO, 1 seed | 0.50 | 1.00 | 0.00 | 2.2 |" in written(found)
    assert "| base model, 1 seed | 0.00 | -0.25 | 0.00 | 2.0 |" in written(found)


def test_references_among_equals_are_of_arms_with_as_many_judgments() -> None:
    one = made_up((1.0, 0.0), {"0": (0.75, -0.5), "base": (0.0, -0.25)})
    two = made_up((0.5, 0.5), {"0": (0.5, -1.0), "1": (-0.5, 1.0), "base": (0.0, -0.25)})
    two.scores.update({f"weight/{name}/{k}": 0.5 for name in ("mmra", "mmra_normalised", "maxmin") for k in (0, 1)})
    best = made_up((1.0, 0.0), {"0": (1.0, 1.0), "base": (0.0, -0.25)})
    found = {"dpo_16": {11: one}, "em_16": {11: two}, "random_16": {11: best}, "em_430": {11: best}}
    assert reference(found, "em_16", 11, "praise") == 1.0
    assert reference(found, "em_16", 11, "praise", EQUALS["_16"]) == 0.75
    assert reference(found, "em_16", 11, "praise", EQUALS["_430"]) == 1.0
    # Of one DPO 0 and 1.5, of MMRA 0.75 and 1: the worst differ by 0.5 there, and by 0.5 with all arms too.
    row = "| EM-DPO + MMRA − one DPO for all, 1 seed | +0.75 | -0.50 | -0.50 |"
    assert row in regret(found)
    assert row in regret_among_equals(found)
    assert uneven(found)
    assert not uneven({arm: found[arm] for arm in ("dpo_16", "em_16")})
    assert regrets(found, "dpo_16", "shares", EQUALS["_16"])[11]["praise"] == 0.0
    assert regrets(found, "dpo_16", "shares")[11]["praise"] == 0.25


def test_what_is_distilled_from_is_not_scored() -> None:
    prompts = public_prompts(scored_prompts())
    assert len(set(prompts)) == DISTILLED_FROM == len(prompts)
    assert not set(prompts) & set(scored_prompts())
    assert public_prompts(scored_prompts()) == prompts
    assert [arm.name for arm in EXPERIMENTS["language"].arms if "distilled" in arm.scores] == ["em_16", "em_430"]


def test_references_are_of_the_same_base_model() -> None:
    one, two = (made_up((1.0, 0.0), {"0": (value, 0.0), "base": (0.0, -0.25)}) for value in (0.5, 1.0))
    found = {"dpo_16": {11: one}, "dpo_430": {11: two}}
    assert reference(found, "dpo_16", 11, "praise") == 1.0
    two.scores["perplexity/base"] += 0.1
    assert reference(found, "dpo_16", 11, "praise") == 0.5
    assert regrets(found, "dpo_430", "shares")[11]["praise"] == 0.0


def test_arms_that_are_compared_share_their_base_model() -> None:
    recorded = from_json((FOLDER / "results" / "language.json").read_text())
    compared = 0
    for labels in DIFFERENCES:
        one, other = (MIXED[label][0] for label in labels)
        for seed in set(regrets(recorded, *MIXED[labels[0]])) & set(regrets(recorded, *MIXED[labels[1]])):
            assert base_of(recorded, one, seed) == base_of(recorded, other, seed) is not None
            compared += 1
    assert compared


def test_tables_of_the_language_model_leave_out_what_has_not_run() -> None:
    assert regret({}).count("|\n") == 2
    told = types_told({"em_16": {11: scored(**{"start/type_accuracy": 0.9, "test/type_accuracy": 1.0})}})
    assert "| EM-DPO, 1 seed | 0.90 | 1.00 | – |" in told
    assert "one DPO" not in told


def test_mixtures_are_those_of_the_games() -> None:
    rewards = torch.tensor([[8.0, -8.0], [-2.0, 2.0]])
    mixtures = mixtures_of(rewards, torch.tensor([3.0, 1.0]))
    assert mixtures["shares"].tolist() == [0.75, 0.25]
    # Regrets 16 w_1 and 4 w_0 are equal at w_1 = 0.2; as shares of 8 and 2 both are 2.
    assert mixtures["mmra"].tolist() == pytest.approx([0.8, 0.2])
    assert mixtures["mmra_normalised"].tolist() == pytest.approx([0.5, 0.5])
    # Rewards 8 (2 w_0 - 1) and 2 (1 - 2 w_0): the worse one is highest, 0, at one half.
    assert mixtures["maxmin"].tolist() == pytest.approx([0.5, 0.5])
    assert mixtures_of(torch.tensor([[-1.0]]), torch.tensor([1.0]))["mmra"].tolist() == [1.0]


def test_texts_are_worth_what_the_world_says() -> None:
    data = parse(resolve(["method=emdpo"])).data
    assert isinstance(data, SyntheticRankings)
    texts = [f" was {PRAISE[0]}.", f" was {ORNATE_ADVERBS[0]} {CRITICISM[0]} {FILLER[0]}."]
    assert parts_of(texts) == {"tone": 0.0, "style": -0.5, "junk": 0.5}
    assert utilities_of(texts, data) == {"praise": -0.5, "criticism": -0.5, "ornate": 0.0}


def test_language_arms_differ_in_method_start_and_judgments(language: dict[str, RunConfig]) -> None:
    few = [config for name, config in language.items() if name.endswith("_16")]
    many = [config for name, config in language.items() if name.endswith("_430")]
    assert len(few) + len(many) == len(language)
    assert len({(config.data, config.model, config.federation) for config in many}) == 1
    assert len({(config.data, config.model, config.federation) for config in few}) == 1
    assert language["em_430"].model == few[0].model
    assert {config.method.name for config in few} == {"dpo", "cluster_dpo", "emdpo", "emdpo_in_sample"}
    ours = method_of(language["em_16"])
    halves = replace(method_of(language["insample_16"]).folds, cross_fit=True)
    assert replace(method_of(language["insample_16"]), name="emdpo", folds=halves) == ours
    assert replace(method_of(language["random_16"]), start=ours.start) == ours
    assert isinstance(method_of(language["random_16"]).start, RandomStart)


def test_the_base_model_reads_responses_and_where_they_end() -> None:
    class Words:
        eos_token_id = 9

        def __call__(self, text: str) -> dict[str, list[int]]:
            return {"input_ids": [int(word) for word in text.split()]}

    words: Any = Words()
    ids, labels, mask = batch(words, [("1 2", "3"), ("4", "5 6 7")])
    assert ids.tolist() == [[1, 2, 3, 9, 9], [4, 5, 6, 7, 9]]
    assert labels.tolist() == [[-100, -100, 3, 9, -100], [-100, 5, 6, 7, 9]]
    assert mask.tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]


def test_the_base_model_is_made_by_one_thread() -> None:
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_a_finished_run_is_scored_and_not_run_again(tmp_path: Path) -> None:
    directory = tmp_path / "seed-0"
    directory.mkdir()
    task = Task(directory, ("nonsense",), ())
    (directory / "summary.json").write_text('{"status": "running"}')
    assert not finished(task)
    (directory / "summary.json").write_text('{"status": "completed"}')
    assert finished(task)
    execute(task)
    assert (directory / "scores.json").read_text() == "{}"


def test_an_experiment_without_runs_keeps_its_record(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text(to_json({"e2e_k1": {0: scored(a=0.5)}}))
    write_results(tmp_path / "runs", tmp_path)
    assert from_json((tmp_path / "real.json").read_text()) == {"e2e_k1": {0: scored(a=0.5)}}
    assert from_json((tmp_path / "language.json").read_text()) == {}


def test_runs_join_their_record() -> None:
    before = {"em_16": {11: scored(a=1.0, b=2.0), 12: scored(a=3.0)}, "em_430": {11: scored(a=4.0)}}
    # Seed 11 has not been scored yet; seed 12 has been run again.
    runs = {"em_16": {14: scored(a=5.0), 11: scored(a=6.0), 12: scored(a=7.0, b=8.0)}, "dpo_430": {11: scored(a=9.0)}}
    found = merged(before, runs)
    assert list(found) == ["em_16", "em_430", "dpo_430"]
    assert list(found["em_16"]) == [11, 12, 14]
    assert found["em_16"] == {11: before["em_16"][11], 12: runs["em_16"][12], 14: runs["em_16"][14]}
    assert found["em_430"] == before["em_430"]
    assert found["dpo_430"] == runs["dpo_430"]
    assert merged(before, {}) == before


def test_arms_have_the_seeds_that_were_fixed_for_them(tmp_path: Path) -> None:
    todo = tasks(EXPERIMENTS["language"], tmp_path, FOLDERS)
    seeds = {
        arm: [int(t.directory.name.removeprefix("seed-")) for t in todo if t.directory.parent.name == arm]
        for arm in LANGUAGE
    }
    assert {arm for arm, own in seeds.items() if own == [11, 12, 13, 14, 15, 16]} == {"dpo_16", "cluster_16", "em_16"}
    assert {arm for arm, own in seeds.items() if own == [14, 15, 16]} == set(LANGUAGE) - {
        "dpo_16",
        "cluster_16",
        "em_16",
    }
    assert tasks(EXPERIMENTS["language"], tmp_path, FOLDERS, [13], ["em_430"]) == []


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
    kept = [one for one in overrides(arm, FOLDERS) if not one.startswith("method.start.demonstration")]
    with pytest.raises(Exception, match="stay alike"):
        start([*kept, f"output='{tmp_path / 'run'}'"])
