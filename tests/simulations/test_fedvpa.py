"""The FedVPA-GP experiment: its arms are valid configs of equal compute, and its README says what was recorded."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest

from fedalign.config import parse, resolve
from simulations.fedvpa.arms import ARMS, CURVES, LOCAL_STEPS, MAIN, ROUNDS, SETTINGS, Setting, arms_of
from simulations.fedvpa.arms import overrides as overrides_of
from simulations.fedvpa.results import from_json, included, read_all, read_use, to_json, with_tables
from simulations.fedvpa.run import curve_place, finished, place, run_all, seeds_of, tasks
from simulations.fedvpa.tables import beside, headline, tables
from tests.cases import mostly_slow

FOLDER = Path(__file__).resolve().parents[2] / "simulations" / "fedvpa"
FIRST = SETTINGS[0]
BY_NAME = {setting.name: setting for setting in SETTINGS}
# Settings of one family differ in numbers alone.
FAMILIES = {setting.family: setting for setting in SETTINGS}
PATHS = {setting.name: "data" for setting in SETTINGS if setting != FIRST}


def resolved_anew(setting: Setting, name: str) -> dict[str, Any]:
    arm = {arm.name: arm for arm in ARMS}[name]
    return resolve(overrides_of(setting, arm, PATHS.get(setting.name)))


# Composing is slow, and most tests look at the same configs.
resolved = functools.cache(resolved_anew)


def judgments_per_round(config: dict[str, Any]) -> float:
    """Return the judgments that a round trains on at most, over the whole cohort."""
    partition, federation, method = config["partition"], config["federation"], config["method"]
    clients = 1 if partition["pooled"] else partition.get("clients") or config["data"]["annotators"] - 20
    episodes = method["episodes"]
    largest = episodes["max_context"] + episodes["targets"]
    return federation["sampler"]["fraction"] * clients * method["local"]["steps"] * episodes["count"] * largest


@pytest.mark.parametrize("setting", mostly_slow(FAMILIES.values(), [FIRST]), ids=lambda setting: setting.name)
def test_every_arm_of_every_family_is_a_valid_config(setting: Setting) -> None:
    for arm in arms_of(setting):
        config = parse(resolved(setting, arm.name))
        assert config.data.name == setting.overrides[0].removeprefix("data=")


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_every_setting_composes_with_the_main_arm(setting: Setting) -> None:
    config = parse(resolved(setting, MAIN))
    assert config.federation.rounds == ROUNDS


@pytest.mark.parametrize("setting", mostly_slow(FAMILIES.values(), [FIRST]), ids=lambda setting: setting.name)
def test_federated_arms_take_equal_steps_on_equally_many_judgments(setting: Setting) -> None:
    compute = {}
    for arm in arms_of(setting):
        if arm.federated:
            config = resolved(setting, arm.name)
            steps = (config["federation"]["rounds"], config["method"]["local"]["steps"])
            compute[arm.name] = (*steps, round(judgments_per_round(config)))
    assert len(compute) >= 12
    assert compute == dict.fromkeys(compute, compute[MAIN])
    # Dialogues take twice the steps, all arms alike.
    assert compute[MAIN][0] == ROUNDS
    assert compute[MAIN][1] in (LOCAL_STEPS, 2 * LOCAL_STEPS)


def test_local_training_takes_as_many_steps_for_each_person() -> None:
    config = resolved(FIRST, "local_bt")
    assert config["method"]["adapt"]["steps"] == ROUNDS * LOCAL_STEPS
    assert config["federation"]["rounds"] == 0


def test_arms_of_a_setting_share_data_partition_encoder_and_evaluation() -> None:
    shared = []
    for arm in arms_of(FIRST):
        config = resolved(FIRST, arm.name)
        partition = {key: value for key, value in config["partition"].items() if key != "pooled"}
        shared.append((config["data"], partition, config["encoder"], config["method"]["evaluation"]))
    assert all(other == shared[0] for other in shared)


def test_arms_that_need_groups_are_told_those_of_the_setting() -> None:
    told = resolved(BY_NAME["hh_strict_10"], "oracle_group")["method"]["assignment"]["groups"]
    assert told == ["helpful-base", "harmless-base"]
    for setting in SETTINGS:
        names = {arm.name for arm in arms_of(setting)}
        assert ("oracle_group" in names) == (setting.family in ("conflict", "hh_strict"))
        assert ("category" in names) == (setting == FIRST)


def test_tuned_values_of_a_setting_come_after_those_of_its_family(monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = {
        "hh_strict": {"*": ("method.local.lr=0.5",), "full": ("method.local.lr=0.6",)},
        "hh_strict_50": {"full": ("method.local.lr=0.7",)},
    }
    monkeypatch.setattr("simulations.fedvpa.arms.TUNED", tuned)
    rates = {
        (name, arm): resolved_anew(BY_NAME[name], arm)["method"]["local"]["lr"]
        for name in ("hh_strict_10", "hh_strict_50")
        for arm in ("full", "fedvpl")
    }
    assert list(rates.values()) == [0.6, 0.5, 0.7, 0.5]
    assert resolved_anew(BY_NAME["hh_strict_10"], "local_bt")["method"]["local"] is None


def test_tasks_are_grouped_by_data_and_seed_and_have_their_own_directories(tmp_path: Path) -> None:
    todo = tasks(SETTINGS, [arm.name for arm in ARMS], [11, 12], PATHS, tmp_path)
    assert len({task.directory for task in todo}) == len(todo)
    assert len(todo) == 2 * sum(len(arms_of(setting)) for setting in SETTINGS) + len(CURVES)
    runs = [task for task in todo if task.directory.name != "curve"]
    order = [(task.directory.parts[-3], task.directory.name) for task in runs]
    assert len(dict.fromkeys(order)) == sum(a != b for a, b in zip(order, [None, *order[:-1]], strict=True))
    texts = {task.directory.parts[-3]: set() for task in runs}
    for task in runs:
        texts[task.directory.parts[-3]].add(task.texts)
    assert texts["conflict"] == {"conflict-11", "conflict-12"}
    assert texts["hh_strict_10"] == texts["hh_mixed_100"] == {"hh"}


def test_a_watched_run_is_evaluated_more_often(tmp_path: Path) -> None:
    todo = tasks([FIRST], ["full"], [11], {}, tmp_path)
    assert [resolve(task.overrides)["federation"]["evaluate_every"] for task in todo] == [1000, 5]
    assert todo[1].directory == curve_place(tmp_path, "conflict", "full")


def test_a_run_is_finished_when_its_summary_says_so(tmp_path: Path) -> None:
    assert not finished(tmp_path)
    for text, done in (("{", False), ('{"status": "failed"}', False), ('{"status": "completed"}', True)):
        (tmp_path / "summary.json").write_text(text)
        assert finished(tmp_path) is done


def test_seeds_are_ranges_or_lists() -> None:
    assert seeds_of("11-13") == [11, 12, 13]
    assert seeds_of("1,5-6") == [1, 5, 6]


def test_a_failed_run_is_reported_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    # Threads see what a test replaces, new processes would not.
    monkeypatch.setattr("simulations.fedvpa.run.ProcessPoolExecutor", lambda jobs, mp_context: ThreadPoolExecutor(jobs))

    ran = []

    def run(overrides: list[str]) -> None:
        ran.append(overrides)
        if "seed=12" in overrides:
            raise ValueError("broken")

    monkeypatch.setattr("fedalign.run.start", run)
    todo = tasks([FIRST], ["length_rule", "full"], [11, 12], {}, tmp_path)
    failures = run_all(todo, 1)
    assert len(ran) == len(todo) == 5
    # The first run of each seed encodes that seed's texts for the others.
    assert ["method=length_rule" in overrides for overrides in ran] == [True, True, False, False, False]
    assert [failure.endswith("ValueError: broken") for failure in failures] == [True, True]
    assert "[5/5]" in capsys.readouterr().out


def write_run(directory: Path, metrics: dict[str, float], rounds: int = 2) -> None:
    """Write what the results are read from."""
    directory.mkdir(parents=True)
    groups = {
        group: {"test/accuracy": metrics["test/accuracy"] + shift, "unseen/accuracy": 0.5}
        for group, shift in (("praise", 0.1), ("criticism", -0.1))
    }
    content = {"status": "completed", "metrics": metrics, "groups": groups, "timing": {"total_s": 3.0}}
    (directory / "summary.json").write_text(json.dumps(content))
    rows = []
    for number in range(rounds + 1):
        rows += [("eval", number, "test/kl", 2.0 - number), ("eval", number, "test/active_units", float(number))]
        rows += [("server", number, "up_bytes", 2e6 * number)] if number else []
    lines = [
        json.dumps({"phase": "selector", "round": n, "scope": s, "group": None, "name": name, "value": v, "n": 1.0})
        for s, n, name, v in rows
    ]
    # The last phase, in which latents are collected, is no training round.
    lines.append(lines[-1].replace("selector", "latents").replace('"value": 4000000.0', '"value": 9e9'))
    (directory / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def write_runs(output: Path) -> None:
    """Write two seeds of three arms; one seed of a fourth, and a run that failed."""
    for seed, shift in ((11, 0.0), (12, 0.02)):
        for arm, accuracy in (("fedavg_bt", 0.5), ("fedvpl", 0.6), ("full", 0.9)):
            metrics = {"test/accuracy": accuracy + shift, "test/accuracy_conflict": accuracy - 0.1 + shift}
            metrics |= {"unseen/accuracy_conflict": accuracy - 0.12 + 2 * shift}
            if arm != "fedavg_bt":
                metrics |= {"test/active_units": 4.0, "test/kl": 1.5, "latent/cluster_agreement": 0.25}
            write_run(place(output, "conflict", arm, seed), metrics)
    write_run(place(output, "conflict", "pal", 12), {"test/accuracy": 0.7})
    failed = place(output, "conflict", "fedem", 11)
    write_run(failed, {"test/accuracy": 0.7})
    (failed / "summary.json").write_text('{"status": "failed"}')
    write_run(curve_place(output, "conflict", "full"), {"test/accuracy": 0.9})


def test_results_are_read_by_setting_arm_metric_and_seed(tmp_path: Path) -> None:
    write_runs(tmp_path)
    found = read_all(tmp_path)
    assert set(found) == {"conflict"}
    assert list(found["conflict"]) == ["fedavg_bt", "pal", "fedvpl", "full"]
    full = found["conflict"]["full"]
    assert full["test/accuracy"] == {11: 0.9, 12: 0.92}
    assert full["test/accuracy@praise"] == {11: 1.0, 12: pytest.approx(1.02)}
    assert full["up_mb_per_round"] == {11: 3.0, 12: 3.0}
    assert headline(found["conflict"]) == "accuracy_conflict"
    use = read_use(tmp_path)["full"]
    assert (use.rounds, use.kl, use.active_units) == ((0, 1, 2), (2.0, 1.0, 0.0), (0.0, 1.0, 2.0))


def test_tables_hold_means_intervals_and_differences_paired_by_seed(tmp_path: Path) -> None:
    write_runs(tmp_path)
    accuracy, latent, groups = (part for part in tables(read_all(tmp_path)).split("\n\n") if part.startswith("| arm"))
    header, _, plain, pal, fedvpl, full = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in accuracy.splitlines()
    )
    column = {title: place for place, title in enumerate(header)}
    # Two seeds: half an interval is 12.7062 standard errors.
    assert plain[column["seen"]] == "51.0 ± 12.7"
    assert pal[0] == "PAL, K=2 (1 of 2 seeds)"
    assert pal[column["seen"]] == "70.0"
    assert pal[column["seen, conflict"]] == "–"
    # The seed moves both arms alike, so that the paired difference has no spread.
    assert plain[column["full − arm, seen, conflict"]] == "+40.0 ± 0.0"
    assert fedvpl[column["full − arm, unseen, conflict"]] == "+30.0 ± 0.0"
    assert full[column["full − arm, seen, conflict"]] == "–"
    assert full[column["unseen − seen, conflict"]] == "-1.0 ± 12.7"
    assert full[column["MB up a round"]] == "3.00 ± 0.00"
    assert "seconds" in column and "unseen" not in column
    assert [line.split(" | ")[0] for line in latent.splitlines()[2:]] == ["| FedVPL", "| full FedVPA-GP"]
    # Clusters are compared with groups where the probe was, too.
    assert "active units" in latent and "ARI" not in latent
    assert "| praise | criticism |" in groups


def test_results_survive_their_file(tmp_path: Path) -> None:
    write_runs(tmp_path)
    found = read_all(tmp_path)
    assert from_json(to_json(found, read_use(tmp_path))) == found


def test_the_readme_keeps_its_text_and_gets_the_tables() -> None:
    assert included("a<!-- t -->old<!-- /t -->z", "t", "new") == "a<!-- t -->\n\nnew\n<!-- /t -->z"
    with pytest.raises(ValueError, match="no <!-- t -->"):
        included("a", "t", "new")


def test_the_readme_has_places_for_the_tables() -> None:
    readme = (FOLDER / "README.md").read_text()
    found = {"hh_strict_10": {"full": {"seconds": {1: 1.0}, "test/accuracy@helpful-base": {1: 0.625}}}}
    written = with_tables(readme, found)
    assert "| full FedVPA-GP | 62.5 / – |" in beside(found)
    assert beside(found) in written
    assert tables(found) in written
    assert with_tables(written, found) == written


@pytest.mark.usefixtures("real_plots")
def test_plots_are_drawn_for_what_there_is(tmp_path: Path) -> None:
    from simulations.fedvpa.plots import plots

    write_runs(tmp_path)
    found = read_all(tmp_path)
    drawn = plots(found, read_use(tmp_path), tmp_path)
    # There are no latents in these runs, and no other data.
    assert set(drawn) == {"accuracy_conflict", "latent_use"}
    assert all(content.startswith(b"\x89PNG") for content in drawn.values())
    assert plots({}, {}, tmp_path) == {}


def test_readme_and_tables_are_those_of_the_recorded_results() -> None:
    found = from_json((FOLDER / "results" / "results.json").read_text())
    assert (FOLDER / "results" / "table.md").read_text() == tables(found)
    readme = (FOLDER / "README.md").read_text()
    assert with_tables(readme, found) == readme
    assert "TODO" not in readme
