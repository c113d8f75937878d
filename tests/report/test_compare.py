"""Comparisons: the right numbers in every form they are shown in."""

import io
import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from fedalign.errors import UserError
from fedalign.report.compare import compare
from fedalign.report.compare_tables import cell, show, to_markdown, to_text
from fedalign.report.comparison import Comparison
from fedalign.report.statistics import Estimate

pytestmark = pytest.mark.usefixtures("real_plots")

MakeRun = Callable[..., Path]
METRIC = "unseen/alignment_score"
SCORES = {"none": [0.70, 0.72, 0.75], "federated": [0.76, 0.77, 0.82]}


@pytest.fixture
def runs(make_run: MakeRun) -> list[Path]:
    return [
        make_run(f"{prior}{seed}", score=score, seed=seed, settings={"method.prior": prior})
        for prior, scores in SCORES.items()
        for seed, score in enumerate(scores)
    ]


def test_means_and_intervals_are_scipys(runs: list[Path]) -> None:
    comparison = compare(runs, None)
    assert comparison.metrics[0] == METRIC
    for arm, scores in zip(comparison.arms, SCORES.values(), strict=True):
        estimate = comparison.estimate(arm, METRIC)
        assert estimate is not None and estimate.half_width is not None and estimate.n == 3
        low, high = stats.t.interval(0.95, 2, loc=np.mean(scores), scale=stats.sem(scores))
        assert estimate.mean - estimate.half_width == pytest.approx(low)
        assert estimate.mean + estimate.half_width == pytest.approx(high)


def test_differences_are_paired_by_seed(runs: list[Path]) -> None:
    comparison = compare(runs, None, baseline="prior=none")
    baseline, other = comparison.arms
    assert comparison.difference(baseline, METRIC) is None
    difference = comparison.difference(other, METRIC)
    interval = stats.ttest_rel(SCORES["federated"], SCORES["none"]).confidence_interval(0.95)
    assert difference is not None and difference.half_width is not None
    assert difference.mean - difference.half_width == pytest.approx(interval.low)
    assert difference.mean + difference.half_width == pytest.approx(interval.high)
    assert compare(runs, None).difference(other, METRIC) is None


def test_only_shared_seeds_are_paired(runs: list[Path]) -> None:
    comparison = compare([runs[0], runs[1], runs[4], runs[5]], None, baseline="prior=none")
    difference = comparison.difference(comparison.arms[1], METRIC)
    assert difference is not None and difference.n == 1 and difference.half_width is None
    assert difference.mean == pytest.approx(0.77 - 0.72)
    apart = compare([runs[0], runs[4]], None, baseline="prior=none")
    assert apart.difference(apart.arms[1], METRIC) is None
    assert "–" in to_text(apart)


def test_one_seed_shows_no_interval(runs: list[Path]) -> None:
    text = to_text(compare([runs[0], runs[3]], None))
    assert "0.7000" in text and "±" not in text.split("\n", 1)[1]


def test_metrics_can_be_chosen(runs: list[Path]) -> None:
    chosen = ["test/alignment_score", "train/loss"]
    assert compare(runs, None, metrics=chosen).metrics == tuple(chosen)
    assert all(name.startswith("unseen/") for name in compare(runs, None).metrics)


def test_what_is_not_there_is_one_line_with_the_nearest_name(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'unseen/alignment_score'"):
        compare(runs, None, metrics=["unseen/aligment_score"])
    with pytest.raises(UserError, match="did you mean 'prior=none'"):
        compare(runs, None, baseline="prior=non")
    with pytest.raises(UserError, match="no such directory"):
        compare([tmp_path / "nowhere"], None)
    with pytest.raises(UserError, match="no directory was given"):
        compare([], None)


def test_failed_and_unfinished_and_repeated_runs_are_named_not_counted(runs: list[Path], make_run: MakeRun) -> None:
    failed = make_run("failed", score=0.1, seed=9, reason="no nodes")
    (runs[5] / "summary.json").unlink()
    again = make_run("again", score=0.71, seed=0, settings={"method.prior": "none"})
    comparison = compare([*runs, failed, again, again], None)
    assert dict(comparison.skipped) == {
        failed: "the run failed: no nodes",
        runs[5]: "the run has not ended",
        runs[0]: "a later run has its settings and seed",
    }
    assert [len(arm.runs) for arm in comparison.arms] == [3, 2]
    assert comparison.arms[0].values(METRIC)[0] == pytest.approx(0.71)
    assert "no nodes" in to_text(comparison)


def test_no_complete_run_says_why(make_run: MakeRun) -> None:
    with pytest.raises(UserError, match=r"no complete run to compare .*no nodes"):
        compare([make_run("failed", reason="no nodes")], None)


def test_text_is_aligned_and_one_line_a_row(runs: list[Path]) -> None:
    lines = to_text(compare(runs, None, baseline="prior=none")).splitlines()
    firsts = ["Mean", "arm", "prior=none", "prior=federated", "", "Difference", "arm", "prior=federated"]
    assert [line.split(" ")[0] for line in lines] == firsts
    assert len({len(line) for line in lines[1:4]}) == len({len(line) for line in lines[6:8]}) == 1


def test_terminal_gets_a_drawn_table_and_a_pipe_plain_text(runs: list[Path]) -> None:
    comparison = compare(runs, None)
    pipe, terminal = io.StringIO(), io.StringIO()
    show(comparison, Console(file=pipe, width=20, _environ={}))
    show(comparison, Console(file=terminal, force_terminal=True, width=140, _environ={}))
    assert pipe.getvalue() == to_text(comparison) and "┃" not in pipe.getvalue()
    assert "┃" in terminal.getvalue() and "prior=federated" in terminal.getvalue()
    assert "0.7833 ± 0.0799" in terminal.getvalue() and "0.7833 ± 0.0799" in pipe.getvalue()


def test_labels_are_not_markup(make_run: MakeRun) -> None:
    runs = [make_run(name, settings={"data.path": f"[red]{name}[/red]|x"}) for name in ("a", "b")]
    comparison = compare(runs, None)
    screen = io.StringIO()
    show(comparison, Console(file=screen, force_terminal=True, width=200, _environ={}))
    assert "path=[red]a[/red]|x" in screen.getvalue()
    for line in to_markdown(comparison).splitlines()[2:]:
        assert line.replace("\\|", "").count("|") == len(comparison.metrics) + 3


def test_cells() -> None:
    assert cell(None) == "–"
    assert cell(Estimate(0.75, None, 1)) == "0.7500"
    assert cell(Estimate(0.75, 0.0123, 3)) == "0.7500 ± 0.0123"
    assert cell(Estimate(0.01, 0.00123, 3), signed=True) == "+0.0100 ± 0.0012"
    assert cell(Estimate(-0.01, 0.00012, 3), signed=True) == "-0.01000 ± 0.00012"


class Links(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.found += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_files_are_written_and_hold_the_same_numbers(runs: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "comparison"
    comparison = compare(runs, output, baseline="prior=none")
    assert sorted(path.name for path in output.iterdir()) == [
        "compare.html",
        "compare.json",
        "compare.md",
        "compare.png",
    ]
    assert (output / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert (output / "compare.md").read_text() == to_markdown(comparison)
    source = (output / "compare.html").read_text()
    page = Links(source)
    assert len(page.found) == 1 and page.found[0].startswith("data:image/png;base64,")
    assert "script" not in page.tags and "http" not in source
    for text in ("0.7833 ± 0.0799", "+0.0600", "method.prior", str(runs[0])):
        assert text in page.text


def test_json_holds_estimates_values_and_differences(runs: list[Path], tmp_path: Path) -> None:
    compare(runs, tmp_path, baseline="prior=none")
    content = json.loads((tmp_path / "compare.json").read_text())
    assert content["baseline"] == "prior=none" and content["confidence"] == 0.95
    first, second = content["arms"]
    assert first["label"] == "prior=none" and first["settings"] == {"method.prior": "none"}
    assert first["runs"]["2"] == str(runs[2]) and first["differences"] == {}
    assert list(second["metrics"][METRIC]["values"].values()) == pytest.approx(SCORES["federated"])
    assert second["metrics"][METRIC]["mean"] == pytest.approx(np.mean(SCORES["federated"]))
    assert second["differences"][METRIC]["mean"] == pytest.approx(0.06) and second["differences"][METRIC]["n"] == 3


def test_a_metric_that_one_arm_lacks_is_a_gap(runs: list[Path], tmp_path: Path) -> None:
    path = runs[3] / "summary.json"
    content = json.loads(path.read_text())
    del content["metrics"][METRIC]
    path.write_text(json.dumps(content))
    comparison: Comparison = compare([runs[0], runs[3]], tmp_path, metrics=[METRIC], baseline="prior=none")
    assert comparison.estimate(comparison.arms[1], METRIC) is None
    assert json.loads((tmp_path / "compare.json").read_text())["arms"][1]["metrics"] == {}
    assert "–" in to_markdown(comparison)


def test_accuracy_of_arms_has_intervals_over_seeds(runs: list[Path], tmp_path: Path) -> None:
    names = ("test/accuracy", "unseen/accuracy_conflict", "unseen/accuracy")
    for number, path in enumerate(runs):
        content = json.loads((path / "summary.json").read_text())
        content["metrics"] = {name: 0.5 + 0.02 * number + 0.1 * index for index, name in enumerate(names)}
        (path / "summary.json").write_text(json.dumps(content))
    chosen = compare(runs, tmp_path, metrics=["unseen/accuracy_conflict"], baseline="prior=none")
    estimate, difference = (of(chosen.arms[1], names[1]) for of in (chosen.estimate, chosen.difference))
    expected = stats.t.ppf(0.975, 2) * 0.02 / np.sqrt(3)
    assert estimate is not None and difference is not None
    assert (estimate.mean, estimate.half_width) == (pytest.approx(0.68), pytest.approx(expected))
    assert (difference.mean, difference.half_width) == (pytest.approx(0.06), pytest.approx(0, abs=1e-12))
    assert "0.6800 ± 0.0497" in to_markdown(chosen) and (tmp_path / "compare.png").exists()
    # When nothing is chosen, all of the unseen people.
    assert compare(runs, None).metrics == names[1:]
