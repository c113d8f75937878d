"""The engine benchmark compares like with like, and its page shows what was recorded."""

from __future__ import annotations

import dataclasses
import functools
import json
import mmap
import time

import pytest
import torch

from fedalign.errors import UserError
from scripts import benchmark, benchmark_scale
from scripts.benchmark import BARE, contenders, main, put, to_page, to_report, to_table
from scripts.benchmark_survey import Survey
from scripts.benchmark_task import Measurement, difference, measure, run_bare, run_engine
from scripts.benchmark_work import NETWORKS, Work

SMALL = Work("2k", clients=4, cohort=2, rounds=4)
SURVEY = Survey("gpo_small", clients=2, rounds=4)
IN_PROCESS = functools.partial(run_engine, engine=["engine=in_process"])


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDALIGN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def instant(monkeypatch):
    """Replaces the runs by given weights: a function from the name of an engine to a value."""

    def install(value_of):
        def measured(task, run):
            name = BARE if run is run_bare else run.keywords["engine"][0].partition("=")[2]
            return Measurement(2.0, 1.0, 0.5, {"w": torch.tensor([0.0, value_of(name)])})

        monkeypatch.setattr(benchmark, "measure", measured)

    return install


@pytest.mark.parametrize("task", [SMALL, SURVEY], ids=lambda task: task.name)
def test_the_engine_ends_with_the_bare_loops_weights(task):
    bare, engine = measure(task, run_bare), measure(task, IN_PROCESS)
    assert difference(engine.weights, bare.weights) <= 1e-6
    assert bare.wall_ms > 0


@pytest.mark.parametrize("network", NETWORKS)
def test_networks_have_the_sizes_that_they_are_named_for(network):
    expected = {"2k": 2_410, "26k": 26_122, "301k": 301_066, "1M": 994_570}
    work = Work(network)
    assert work.parameters == expected.get(network, work.parameters)
    assert network != "transformer" or 270_000 < work.parameters < 280_000


def test_a_schedule_is_one_of_cohorts_without_repetition():
    plan = SMALL.schedule()
    assert [len(set(cohort)) for cohort in plan] == [2, 2, 2, 2]
    assert all(cohort == sorted(cohort) for cohort in plan)
    assert dataclasses.replace(SMALL, seed=1).schedule() != plan


def test_the_work_trains():
    """Equal weights would mean nothing if they were those of the start, or the same for any work."""
    ends = [measure(dataclasses.replace(SMALL, **change), run_bare) for change in ({}, {"rounds": 5}, {"seed": 1})]
    assert difference(ends[0].weights, ends[1].weights) > 1e-4
    assert difference(ends[0].weights, ends[2].weights) > 1e-4


def test_difference_finds_the_largest_and_refuses_other_names():
    first = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(3.0)}
    assert difference(first, {"a": torch.tensor([1.0, 2.5]), "b": torch.tensor(2.9)}) == 0.5
    with pytest.raises(ValueError, match="are not"):
        difference(first, {"a": first["a"]})


def test_pfl_is_compared_only_where_it_is_and_can(monkeypatch):
    monkeypatch.setattr(benchmark.benchmark_pfl, "installed", lambda: True)
    assert list(contenders(SMALL, ["in_process", "pfl"])) == ["bare", "in_process", "pfl"]
    assert list(contenders(SURVEY, ["in_process", "pfl"])) == ["bare", "in_process"]
    monkeypatch.setattr(benchmark.benchmark_pfl, "installed", lambda: False)
    assert list(contenders(SMALL, ["pfl"])) == ["bare"]


def test_report_is_printed_written_and_put_on_the_page(instant, tmp_path, capsys):
    instant(lambda engine: 0.0)
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- engines -->\nold\n<!-- end of engines -->\nafter\n")
    asked = ["--work", "2k", "--engines", "in_process", "flower", "--repeats", "2"]
    assert main([*asked, "--out", str(tmp_path / "run.json"), "--page", str(page)]) == 0
    report = json.loads((tmp_path / "run.json").read_text())["2k"]
    assert report["parameters"] == 2410
    assert report["engines"]["in_process"]["wall_ratio"] == [1.0, 1.0]
    assert report["engines"]["flower"]["cpu_ratio"] is None
    assert "| in_process | 2.00 | 1.00 | 1.00 | 0.00 | 0.5 | 0e+00 |" in to_table(report)
    assert to_table(report) in capsys.readouterr().out
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n")
    assert to_page({"2k": report}) in text and "old" not in text


def test_a_page_without_a_place_is_refused(tmp_path):
    (tmp_path / "page.md").write_text("nothing here")
    with pytest.raises(UserError, match="has no place"):
        put(tmp_path / "page.md", "tables")


@pytest.mark.parametrize("wrong", [1e-4, float("nan")])
def test_other_weights_are_an_error(instant, capsys, wrong):
    instant(lambda engine: wrong if engine == "in_process" else 0.0)
    assert main(["--work", "2k", "--repeats", "1", "--engines", "in_process"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].endswith("2k on in_process")


@pytest.mark.parametrize(
    "arguments", [["--rounds", "3"], ["--repeats", "0"], ["--engines", "nope"], ["--work", "nope"], ["--threads", "0"]]
)
def test_what_cannot_be_timed_or_compared_is_refused(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2


def test_ratios_are_to_the_bare_loop_of_the_same_repeat():
    def run(wall):
        return Measurement(wall, wall, 0.0, {"w": torch.zeros(1)})

    report = to_report(SMALL, {BARE: [run(1.0), run(4.0)], "in_process": [run(2.0), run(4.0)]})
    assert report["engines"]["in_process"]["wall_ratio"] == [2.0, 1.0]
    assert report["engines"]["in_process"]["overhead_ms"] == [1.0, 0.0]


def test_the_page_shows_the_recorded_runs(root):
    page = (root / "docs" / "benchmarks.md").read_text()
    reports = json.loads((root / "docs" / "benchmarks" / "engines.json").read_text())
    assert to_page(reports) in page
    assert reports.keys() >= {"2k", "26k", "301k", "transformer", "gpo_small"}
    for name, report in reports.items():
        assert benchmark.apart(name, report) == []


def test_only_biases_of_survey_networks_may_differ_and_only_in_stacks():
    numbers = {"max_difference": 1e-3}
    report = {"engines": {"in_process": numbers, "vectorised": numbers, "ray": {"max_difference": 1e-7}}}
    assert benchmark.apart("2k", report) == ["in_process", "vectorised"]
    assert benchmark.apart("gpo_small", report) == ["in_process"]


def test_the_page_shows_the_recorded_scale(root):
    page = (root / "docs" / "benchmarks.md").read_text()
    report = json.loads((root / "docs" / "benchmarks" / "scale.json").read_text())
    assert benchmark_scale.to_table(report) in page


def test_memory_is_the_most_above_the_start():
    with benchmark_scale.peak() as held:
        # Pages of its own: what an allocator has kept of earlier tests would not count again.
        block = mmap.mmap(-1, 40 * 2**20)
        block.write(b"x" * len(block))
        time.sleep(0.1)
        block.close()
    assert 35 * 2**20 <= held[0] <= 80 * 2**20
