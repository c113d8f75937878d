"""The engine benchmark compares like with like, and its pages show what was recorded."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from scripts import benchmark_engines as benchmark
from scripts.benchmark_engines import Measurement, Work, difference, main, measure, to_table

WORK = Work(model="gpo_small", clients=3, rounds=2, seed=0, threads=1, workers=1)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDALIGN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def bare():
    return measure("bare", WORK)


@pytest.fixture
def instant(monkeypatch):
    """Replaces the runs by given weights: a function from engine to value."""

    def install(value_of):
        def measured(engine, work):
            return Measurement(2.0, 1.0, 0.5, {"w": torch.tensor([0.0, value_of(engine)])})

        monkeypatch.setattr(benchmark, "measure", measured)

    return install


def test_the_engine_ends_with_the_bare_loops_weights(bare):
    assert difference(measure("in_process", WORK).weights, bare.weights) <= 1e-6


@pytest.mark.slow
def test_the_work_trains(bare):
    """Equal weights would mean nothing if they were those of the start, or the same for any work."""
    longer = measure("bare", dataclasses.replace(WORK, rounds=3))
    other = measure("bare", dataclasses.replace(WORK, seed=1))
    assert difference(longer.weights, bare.weights) > 1e-4
    assert difference(other.weights, bare.weights) > 1e-4


def test_difference_finds_the_largest_and_refuses_other_names():
    first = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(3.0)}
    assert difference(first, {"a": torch.tensor([1.0, 2.5]), "b": torch.tensor(2.9)}) == 0.5
    with pytest.raises(ValueError, match="are not"):
        difference(first, {"a": first["a"]})


def test_report_is_printed_and_written(instant, tmp_path, capsys):
    instant(lambda engine: 0.0)
    assert main(["--repeats", "2", "--out", str(tmp_path / "run.json")]) == 0
    report = json.loads((tmp_path / "run.json").read_text())
    assert list(report["engines"]) == ["bare", "in_process", "flower"]
    assert report["engines"]["in_process"]["wall_ratio"] == [1.0, 1.0]
    assert report["engines"]["flower"]["cpu_ms"] is None
    table = (tmp_path / "run.md").read_text()
    assert capsys.readouterr().out == table == to_table(report)
    assert "| in_process | 2.0 | 1.00 | 1.0 | 1.00 | 0.5 | 0.0e+00 |" in table


@pytest.mark.parametrize("wrong", [1e-5, float("nan")])
def test_other_weights_are_an_error(instant, capsys, wrong):
    instant(lambda engine: wrong if engine == "in_process" else 0.0)
    assert main(["--repeats", "1", "--engines", "bare", "in_process"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].endswith("in_process")


@pytest.mark.parametrize("arguments", [["--model", "nope"], ["--clients", "0"], ["--workers", "0"]])
def test_bad_input_is_one_line_before_anything_runs(arguments, capsys):
    assert main(arguments) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["--rounds", "1"], ["--repeats", "0"], ["--engines", "in_process"]])
def test_what_cannot_be_timed_or_compared_is_refused(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2


def test_the_page_shows_the_recorded_runs(root):
    page = (root / "docs" / "benchmarks.md").read_text()
    records = sorted((root / "docs" / "benchmarks").glob("engines*.json"))
    assert len(records) == 2
    for record in records:
        report = json.loads(record.read_text())
        assert to_table(report) in page, f"docs/benchmarks.md does not show {record.name}"
        assert all(numbers["max_difference"] <= 1e-6 for numbers in report["engines"].values())
