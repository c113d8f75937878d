"""The experiment of private alignment: its arms differ in privacy only, and its tables are those of its runs."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from fedalign.config import RunConfig, parse, resolve
from fedalign.data.corpus_partition import Silos, Users
from fedalign.data.imdb import IMDB
from fedalign.federation.sampling import PoissonSampler
from fedalign.methods.dprlhf import DPRLHF
from fedalign.methods.fitted_sentiment import FittedSentiment
from fedalign.methods.policy_gradient import PPO, GroupGradient
from fedalign.methods.text_reward import Vader
from fedalign.metrics.record import Metric
from fedalign.models.language_model import LanguageModelSpec
from fedalign.privacy.base import NoPrivacy
from fedalign.privacy.protection import Protection
from fedalign.report.metrics_log import to_line
from fedalign.report.statistics import Estimate
from fedalign.run import start
from simulations.dprlhf.arms import ARMS, DELTA, EPSILONS, MAIN, SECONDARY, TUNING_SEED, overrides
from simulations.dprlhf.claims import CLAIMS, verdict
from simulations.dprlhf.paper import PAPER
from simulations.dprlhf.plots import plot
from simulations.dprlhf.record import SeedResult, Texts, from_json
from simulations.dprlhf.results import read_all, read_run, with_tables
from simulations.dprlhf.run import tasks
from simulations.dprlhf.tables import tables
from simulations.records import to_json
from tests.language_models import WORDS, random_model

FOLDER = Path(__file__).resolve().parents[2] / "simulations" / "dprlhf"
RECORDED = FOLDER / "results" / "results.json"
TEXTS = Texts(0.1, 0.02, 0.5, 0.0, 70.0, 0.99, 0.07)


@pytest.fixture(scope="module")
def configs() -> dict[str, RunConfig]:
    return {arm.name: parse(resolve([*overrides(arm, "model", "folder")])) for arm in ARMS}


def method(config: RunConfig) -> DPRLHF:
    assert isinstance(config.method, DPRLHF)
    return config.method


def protection(config: RunConfig) -> Protection:
    assert isinstance(config.privacy, Protection)
    return config.privacy


def test_arms_of_the_first_table_differ_in_epsilon_only(configs: dict[str, RunConfig]) -> None:
    free = configs["none"]
    assert isinstance(free.privacy, NoPrivacy)
    private = [configs[f"eps{epsilon}"] for epsilon in EPSILONS]
    assert [replace(config, privacy=free.privacy) for config in private] == [free] * len(EPSILONS)
    last = protection(private[-1])
    for epsilon, config in zip(EPSILONS, private, strict=True):
        assert replace(protection(config), epsilon=8) == last
        assert (protection(config).epsilon, protection(config).delta) == (epsilon, DELTA)
        assert protection(config).noise_multiplier is None


def test_every_user_of_a_private_arm_has_one_review_and_one_stage(configs: dict[str, RunConfig]) -> None:
    for config in configs.values():
        assert isinstance(config.data, IMDB)
        assert isinstance(config.partition, Silos | Users)
        assert config.data.reviews_per_user == 1
        assert config.partition.disjoint
    for epsilon in EPSILONS:
        local = protection(configs[f"eps{epsilon}"]).local
        assert local is not None
        assert local.unit == "user"


def test_a_step_takes_as_many_reviews_with_a_guarantee_as_without(configs: dict[str, RunConfig]) -> None:
    local = protection(configs["eps4"]).local
    settings = method(configs["none"])
    assert local is not None and settings.sft is not None and settings.rl is not None
    # 7,980 reviews of the data that this was run on, over two silos and two stages.
    assert settings.sft.batch == settings.rl.batch == round(1995 * local.rate)
    sampler = configs["central_eps8"].federation.sampler
    assert sampler == PoissonSampler(local.rate)
    for config in configs.values():
        stages = [method(config).sft, method(config).rl]
        assert [(stage.local.steps, stage.local.optimizer) for stage in stages if stage is not None] == [(1, "sgd")] * 2
        assert config.federation.rounds == configs["none"].federation.rounds


def test_secondary_arms_change_what_they_say(configs: dict[str, RunConfig]) -> None:
    assert [arm.baseline in {main.name for main in MAIN} for arm in SECONDARY] == [True] * len(SECONDARY)
    four, rloo, both = configs["eps4"], configs["rloo_eps4"], configs["both_factors_eps4"]
    own, other = method(four).rl, method(rloo).rl
    assert own is not None and other is not None
    assert isinstance(own.algorithm, PPO)
    assert isinstance(other.algorithm, GroupGradient)
    assert (other.algorithm.baseline, other.algorithm.completions) == ("rloo", 2)
    assert replace(rloo, method=four.method) == four
    assert replace(method(rloo), rl=replace(other, algorithm=own.algorithm)) == method(four)
    assert isinstance(four.model, LanguageModelSpec)
    assert four.model.freeze_a
    assert both == replace(four, model=replace(four.model, freeze_a=False))
    clip = protection(configs["clip"])
    assert (clip.epsilon, clip.noise_multiplier, clip.local) == (None, 0.0, protection(four).local)
    assert isinstance(configs["central_none"].partition, Users)
    assert isinstance(configs["central_none"].privacy, NoPrivacy)
    assert replace(configs["central_eps8"], privacy=NoPrivacy()) == configs["central_none"]


def test_the_judge_is_another_reward_than_the_one_trained_for(configs: dict[str, RunConfig]) -> None:
    for config in configs.values():
        judge = method(config).evaluation.judge
        assert isinstance(judge, FittedSentiment)
        assert judge.path == "folder/test.jsonl.gz"
        assert judge.words is None
        assert isinstance(method(config).reward, Vader)
        assert method(config).evaluation.baseline == "pretrained"


def test_runs_of_the_first_table_come_first_seed_by_seed(tmp_path: Path) -> None:
    todo = tasks(ARMS, "model", "folder", range(2), tmp_path)
    assert len({task.directory for task in todo}) == 2 * len(ARMS)
    names = [task.directory.relative_to(tmp_path).as_posix() for task in todo[: 2 * len(MAIN)]]
    assert names == [f"{arm.name}/seed-{seed}" for seed in (0, 1) for arm in MAIN]
    assert [task.overrides[-1] for task in todo[: 2 * len(MAIN)]] == ["seed=0"] * len(MAIN) + ["seed=1"] * len(MAIN)
    assert not any(f"seed={TUNING_SEED}" in task.overrides for task in todo)


def evaluation(phase: str, number: int, reward: float) -> list[Metric]:
    """Return the metrics of one evaluation, which tell from where they are."""
    values = {
        "reward": reward,
        "reward_interval": 0.02,
        "win_rate": reward + 0.5,
        "kl": reward * 2,
        "perplexity": 70 - reward,
        "distinct_2": 0.9,
        "rougeL": 0.07,
    }
    own = [Metric(phase, number, "eval", None, f"unseen/{name}", value, 1.0) for name, value in values.items()]
    return [*own, Metric(phase, number, "eval", "all", "unseen/reward", -1.0, 1.0)]


def finished(directory: Path, privacy: Mapping[str, object] | None) -> Path:
    """Write what a finished run of two and three rounds leaves behind, as far as it is read."""
    (directory / "model").mkdir(parents=True)
    (directory / "model" / "model.json").write_text("{}")
    places = [("sft", 0, 0.1), ("sft", 2, 0.05), ("rl", 0, 0.05), ("rl", 2, 0.2), ("rl", 3, 0.3)]
    records = [metric for place in places for metric in evaluation(*place)]
    (directory / "metrics.jsonl").write_text("".join(to_line(metric) + "\n" for metric in records))
    (directory / "summary.json").write_text(json.dumps({"privacy": privacy, "timing": {"total_s": 61.23}}))
    return directory


def test_a_run_is_read_by_its_stages(tmp_path: Path) -> None:
    privacy = {
        "epsilon": 3.99,
        "delta": 1e-5,
        "epsilon_by_phase": {"sft": 2.5, "rl": 3.99},
        "noise_multipliers": {"sft": 1.0, "rl": 1.0},
    }
    result = read_run(finished(tmp_path / "eps4" / "seed-1", privacy))
    assert (result.pretrained.reward, result.tuned.reward, result.aligned.reward) == (0.1, 0.05, 0.3)
    assert result.aligned == Texts(0.3, 0.02, 0.8, 0.6, 69.7, 0.9, 0.07)
    assert result.gain == pytest.approx(0.2)
    assert result.curve == (("sft", 0, 0.1), ("sft", 2, 0.05), ("rl", 0, 0.05), ("rl", 2, 0.2), ("rl", 3, 0.3))
    assert (result.epsilon, result.delta, result.epsilons) == (3.99, 1e-5, {"sft": 2.5, "rl": 3.99})
    assert (result.noise_multipliers, result.seconds) == ({"sft": 1.0, "rl": 1.0}, 61.2)
    assert read_all(tmp_path) == {"eps4": {1: result}}


def test_a_run_without_noise_has_spent_nothing_that_can_be_told(tmp_path: Path) -> None:
    clipped = {"epsilon": None, "delta": 1e-5, "epsilon_by_phase": {}, "noise_multipliers": {"sft": 0.0, "rl": 0.0}}
    for name, privacy in (("none", None), ("clip", clipped)):
        result = read_run(finished(tmp_path / name, privacy))
        assert (result.epsilon, result.delta, result.epsilons, result.noise_multipliers) == (None, None, {}, {})


def test_unfinished_runs_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "eps4" / "seed-0").mkdir(parents=True)
    assert read_all(tmp_path) == {}


def result(reward: float, tuned: float = 0.05) -> SeedResult:
    return SeedResult(
        pretrained=TEXTS,
        tuned=replace(TEXTS, reward=tuned),
        aligned=replace(TEXTS, reward=reward, win_rate=0.7, kl=3.0),
        curve=(("sft", 0, 0.1), ("sft", 2, tuned), ("rl", 0, tuned), ("rl", 3, reward)),
        epsilon=3.99,
        delta=1e-5,
        epsilons={"sft": 2.5, "rl": 3.99},
        noise_multipliers={"sft": 1.25, "rl": 1.5},
        seconds=120.0,
    )


def found() -> dict[str, dict[int, SeedResult]]:
    """Two seeds of some arms."""
    free = {seed: replace(result(0.5 + seed / 10), epsilon=None, epsilons={}, noise_multipliers={}) for seed in (0, 1)}
    return {
        "eps1": {0: result(0.04), 1: result(0.045)},
        "eps4": {seed: result(0.35 + seed / 10) for seed in (0, 1)},
        "eps8": {0: result(0.4), 1: result(0.48)},
        "none": free,
        "rloo_eps4": {0: result(0.30)},
    }


def rows(text: str) -> dict[str, list[str]]:
    """Return the cells of each row of the first table that has it."""
    split = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {cells[0]: cells[1:] for cells in reversed(split)}


def test_tables_hold_gains_shares_and_paired_differences() -> None:
    lines = rows(tables(found()))
    # Two seeds 0.1 apart: half an interval is 12.7062 standard errors of 0.05.
    assert lines["epsilon 4"] == [
        "0.100 ± 0.000",
        "0.050 ± 0.000",
        "0.400 ± 0.635",
        "+0.300 ± 0.635",
        "+0.350 ± 0.635",
        "67%",
    ]
    assert lines["no privacy"][-1] == "100%"
    assert lines["epsilon 2"] == ["–"] * 6
    assert lines["epsilon 4, RLOO (two responses a prompt) (seeds: 1)"][-1] == "-0.050 (epsilon 4)"
    assert lines["GPT-2"][:2] == ["-0.30", "1.47 ± 0.81 (52%)"]
    assert "| 3.99 | 2.50 / 3.99 | 1.25 / 1.50 | 0.020 | 2 |" in tables(found())


def test_claims_are_computed_from_the_results() -> None:
    lines = rows(tables(found()))
    assert lines["reward without privacy ≥ at epsilon 8"] == [
        "0.550",
        "0.440",
        "+0.110 ± 0.127",
        "yes, but within chance",
    ]
    # Gains 0.25 and 0.35 against half of 0.4 and 0.5.
    assert lines["gain at epsilon 4 ≥ half of the gain without privacy"][2:] == [
        "+0.075 ± 0.318",
        "yes, but within chance",
    ]
    assert lines["at epsilon 1, reward ≥ after its own fine-tuning"][2:] == ["-0.008 ± 0.032", "no, but within chance"]
    assert [claim.difference({}) for claim in CLAIMS] == [None] * len(CLAIMS)


@pytest.mark.parametrize(
    ("difference", "text"),
    [
        (None, "not run"),
        (Estimate(0.1, 0.05, 3), "yes"),
        (Estimate(0.1, 0.2, 3), "yes, but within chance"),
        (Estimate(-0.1, 0.2, 3), "no, but within chance"),
        (Estimate(-0.1, 0.05, 3), "no"),
        (Estimate(-0.1, None, 1), "no, on one seed"),
    ],
)
def test_a_verdict_says_whether_chance_could_turn_it(difference: Estimate | None, text: str) -> None:
    assert verdict(difference) == text


def test_the_paper_is_quoted_with_its_shares() -> None:
    small, _, large = PAPER
    assert small.share("eps4") == pytest.approx((2.74 + 0.30) / (3.10 + 0.30))
    assert large.aligned["eps1"] == (0.71, 0.13)
    assert large.share("none") == 1.0


@pytest.mark.usefixtures("real_plots")
def test_results_survive_their_file_and_are_drawn() -> None:
    assert from_json(to_json(found())) == found()
    assert plot(found()).startswith(b"\x89PNG")
    assert plot({}).startswith(b"\x89PNG")


def test_a_readme_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="no <!-- tables -->"):
        with_tables("text", {})


def test_readme_and_tables_are_those_of_the_recorded_results() -> None:
    recorded = from_json(RECORDED.read_text())
    readme = (FOLDER / "README.md").read_text()
    assert with_tables(readme, recorded) == readme
    assert (FOLDER / "results" / "table.md").read_text() == tables(recorded)


def test_recorded_runs_have_three_seeds_and_kept_their_budget() -> None:
    recorded = from_json(RECORDED.read_text())
    assert all(len(recorded[arm.name]) >= 3 for arm in MAIN)
    for arm in ARMS:
        for each in recorded.get(arm.name, {}).values():
            assert (each.epsilon is None) == (arm.epsilon is None)
            if arm.epsilon is not None and each.epsilon is not None:
                assert 0.97 * arm.epsilon < each.epsilon <= arm.epsilon
                # Users of the stages are disjoint: the costliest phase is what the run costs.
                assert each.epsilon == pytest.approx(max(each.epsilons.values()), abs=1e-6)


def reviews(folder: Path) -> Path:
    """Write random reviews in the form of IMDb's files."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for split, count in (("train", 60), ("test", 24)):
        texts = [" ".join(rng.choice(WORDS[2:], size=30)) for _ in range(count)]
        lines = [json.dumps({"text": text, "label": i % 2}) for i, text in enumerate(texts)]
        (folder / f"{split}.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["eps4", "central_eps8"])
def test_an_arm_runs_and_is_read(tmp_path: Path, name: str) -> None:
    arm = next(arm for arm in ARMS if arm.name == name)
    model, data = random_model("gpt2", tmp_path / "model"), reviews(tmp_path / "imdb")
    small = ["method.sft.rounds=2", "federation.rounds=2", "method.evaluation.prompts=8", "method.lengths.prompt=8"]
    rate = "privacy.local.rate" if name == "eps4" else "federation.sampler.rate"
    directory = tmp_path / arm.name / "seed-0"
    given = [*overrides(arm, str(model), str(data)), *small, f"{rate}=0.3", "seed=0", f"output='{directory}'"]
    start(given)
    read = read_all(tmp_path)[arm.name][0]
    assert arm.epsilon is not None and read.epsilon is not None
    assert 0.97 * arm.epsilon < read.epsilon <= arm.epsilon
    assert set(read.epsilons) == set(read.noise_multipliers) == {"sft", "rl"}
    assert read.pretrained.win_rate == 0.5
    assert read.pretrained.kl == pytest.approx(0.0, abs=1e-6)
    assert read.aligned.kl > 0
    assert [(phase, number) for phase, number, _ in read.curve] == [("sft", 0), ("sft", 2), ("rl", 0), ("rl", 2)]
    assert all(np.isfinite(value) for value in asdict(read.aligned).values())
