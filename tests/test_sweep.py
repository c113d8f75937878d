"""Sweeps: every combination runs, is compared, and nothing starts before everything is checked."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from fedalign import sweep
from fedalign.errors import UserError
from fedalign.predict import Prediction
from fedalign.sweep import report, run_all, show_predictions
from tests.tiny import DATA, trained_run, use_cache


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_run(tmp_path_factory.getbasetemp())


@pytest.fixture(autouse=True)
def _own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_cache(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# Commas, blanks and equal signs: the directory is not to be read as Hydra's grammar a second time.
OUTPUT = "a, b=(c)'s"


def test_every_combination_runs_and_is_compared(tmp_path: Path, console: Console) -> None:
    escaped = OUTPUT.replace("'", r"\'")
    root = run_all(console, [*DATA, "method=uniform,question_mean", "seed=1", f"output='{escaped}'"])
    assert root == Path(OUTPUT)
    assert {path.name for path in root.iterdir()} == {"0", "1", "comparison"}
    ran = [yaml.safe_load((root / str(number) / "config.yaml").read_text()) for number in (0, 1)]
    assert [(config["method"]["name"], config["seed"]) for config in ran] == [("uniform", 1), ("question_mean", 1)]
    assert [config["output"] for config in ran] == [f"{OUTPUT}/0", f"{OUTPUT}/1"]
    assert (root / "comparison" / "compare.html").is_file()
    assert "run 1 of 2: " in printed(console)
    assert "comparison/compare.html" in printed(console)


def never(overrides: list[str]) -> None:
    raise AssertionError("nothing may run")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=1,-2"], "seed=-2 is not valid"),
        (["method=uniform,unifrom"], "method=unifrom: no such option"),
        (["method=uniform,pluralllm", "method.prior=none"], "unknown key method.prior"),
        (["seed=range(0)"], "leaves nothing to run"),
        (["seed=choice(1"], r"cannot read seed=choice\(1: no viable"),
        (["seed=1", "output=a,b"], "cannot read output=a,b"),
        (["seed=1", "output=5"], "output=5 is not valid"),
        (["seed=1", "output=full"], "output=full: not an empty directory"),
        (["seed=1", "output=file"], "output=file: not an empty directory"),
    ],
)
def test_everything_is_checked_before_anything_runs(
    tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch, overrides: list[str], message: str
) -> None:
    monkeypatch.setattr(sweep.run, "start", never)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").touch()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message):
        run_all(console, [*DATA, *overrides])
    assert sorted(tmp_path.rglob("*")) == before


def test_without_an_output_a_sweep_gets_a_directory_by_time(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []

    class Started:
        """Stands for a finished run."""

        directory = Path("somewhere")

    def start(overrides: list[str]) -> Started:
        started.append(overrides[-1])
        return Started()

    monkeypatch.setattr(sweep.run, "start", start)
    monkeypatch.setattr(sweep, "report", lambda *arguments: None)
    root = run_all(console, [*DATA, "method=uniform", "seed=1,2"])
    assert root.parent == Path("outputs/sweep")
    assert started == [f"output='{root}/0'", f"output='{root}/1'"]


def test_one_run_is_rendered_where_it_is(tmp_path: Path, trained: Path, console: Console) -> None:
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "report.html").unlink()
    report(console, [tmp_path / "run"], None, None, None)
    assert (tmp_path / "run" / "report.html").is_file()
    assert f"report: {tmp_path / 'run' / 'report.html'}" in printed(console)


@pytest.mark.parametrize("output", [None, "elsewhere"])
def test_many_runs_are_compared_beside_the_first_or_where_told(
    tmp_path: Path, trained: Path, console: Console, output: str | None
) -> None:
    for name in ("one", "two"):
        shutil.copytree(trained, tmp_path / "runs" / name)
    place = None if output is None else tmp_path / output
    report(console, [tmp_path / "runs" / "one", tmp_path / "runs" / "two"], place, None, None)
    expected = tmp_path / "runs" / "comparison" if place is None else place
    assert (expected / "compare.html").is_file()
    assert f"comparison: {expected / 'compare.html'}" in printed(console)


def test_predictions_are_shown_an_option_a_row(console: Console) -> None:
    show_predictions(
        console, [Prediction("Tea?", ("good", "bad"), (0.25, 0.75)), Prediction("Rain?", ("yes", "no"), (1.0, 0.0))]
    )
    rows = [[cell.strip() for cell in line.strip("│ ").split("│")] for line in printed(console).splitlines()]
    assert ["Tea?", "good", "0.250"] in rows
    assert ["bad", "0.750"] in [[cell for cell in row if cell] for row in rows]
    assert ["Rain?", "yes", "1.000"] in rows
