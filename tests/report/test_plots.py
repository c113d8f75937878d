"""Plots: that they are pictures, and that they show the numbers they were given."""

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedalign.metrics.record import Metric
from fedalign.report.curves import Curves
from fedalign.report.plots import (
    PEOPLE,
    POPULATIONS,
    fairness_plot,
    groups_plot,
    headline_plot,
    loss_plot,
    populations_of,
    run_plots,
)
from fedalign.report.run_directory import RunDirectory

pytestmark = pytest.mark.usefixtures("real_plots")

PNG = b"\x89PNG\r\n\x1a\n"
HOSTILE = ["$x^{", "<b>&", "100%_\\frac", "日本", "a\nb", "_hidden", "x" * 300, ""]


def curves_of(path: Path) -> Curves:
    return Curves(RunDirectory.open(path).read_metrics())


def lines(ax: Axes) -> dict[str, list[float]]:
    return {str(line.get_label()): [float(y) for y in line.get_ydata()] for line in ax.get_lines()}  # type: ignore[union-attr]


def test_a_run_gives_four_pictures(make_run: Callable[..., Path]) -> None:
    path = make_run("run")
    summary = RunDirectory.open(path).read_summary()
    plots = run_plots(curves_of(path), summary.metrics, summary.groups, "unseen/alignment_score")
    assert list(plots) == ["headline", "groups", "training_loss", "fairness"]
    assert all(content.startswith(PNG) for content in plots.values())


def test_a_run_that_measured_nothing_gives_none() -> None:
    assert run_plots(Curves([]), {}, {}, "unseen/alignment_score") == {}


def test_headline_shows_mean_and_worst_of_both_populations(make_run: Callable[..., Path], drawn: list[Figure]) -> None:
    assert headline_plot(curves_of(make_run("run", score=0.75)), "alignment_score") is not None
    found = lines(drawn[0].axes[0])
    assert found["unseen groups: mean"] == pytest.approx([0.69, 0.71, 0.73, 0.75])
    assert found["unseen groups: worst group"] == pytest.approx([0.68, 0.70, 0.72, 0.74])
    assert found["training groups: mean"] == pytest.approx([0.70, 0.72, 0.74, 0.76])


def test_worst_group_comes_from_the_groups_when_it_was_not_recorded(drawn: list[Figure]) -> None:
    metrics = [
        Metric("a", number, "eval", group, "test/accuracy", value + number, 1.0)
        for number in (0, 1)
        for group, value in (("g", 0.25), ("h", 0.5), (None, 0.375))
    ]
    headline_plot(Curves(metrics), "accuracy")
    assert lines(drawn[0].axes[0])["training groups: worst group"] == [0.25, 1.25]


def test_a_single_evaluation_is_no_curve() -> None:
    once = Curves([Metric("a", 0, "test", None, "unseen/alignment_score", 0.5, 1.0)])
    assert headline_plot(once, "alignment_score") is None
    assert fairness_plot(once) is None


def test_group_bars_are_sorted_and_carry_the_recorded_mean(drawn: list[Figure]) -> None:
    groups = {
        "low": {"unseen/accuracy": 0.25, "train/loss": 9.0},
        "high": {"test/accuracy": 0.75},
        "middle": {"unseen/accuracy": 0.5},
        "unmeasured": {"train/loss": 1.0},
    }
    groups_plot({"unseen/accuracy": 0.3}, groups, "accuracy")
    ax = drawn[0].axes[0]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["high", "middle", "low"]
    heights = {round(bar.get_y() + bar.get_height() / 2): bar.get_width() for bar in ax.patches}  # type: ignore[attr-defined]
    assert heights == {0: 0.75, 1: 0.5, 2: 0.25}
    assert [text.get_text() for text in ax.texts] == ["0.750", "0.500", "0.250"]
    # Weighted by questions, a recorded mean is not the mean of the bars: the recorded one is drawn.
    assert [float(line.get_xdata()[0]) for line in ax.get_lines()] == [0.3]  # type: ignore[index,arg-type]


def test_many_groups_are_cut_in_the_middle(drawn: list[Figure]) -> None:
    groups = {f"g{index:03d}": {"test/accuracy": index / 1000} for index in range(500)}
    groups_plot({}, groups, "accuracy")
    ax = drawn[0].axes[0]
    names = [text.get_text() for text in ax.get_yticklabels()]
    assert len(names) == 40 and names[0] == "g499" and names[-1] == "g000"
    assert "460 in the middle not shown" in ax.get_title("left")


def test_names_are_drawn_as_they_are_whatever_they_hold(drawn: list[Figure]) -> None:
    groups = {name: {"unseen/accuracy": 0.5} for name in HOSTILE}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        content = groups_plot({}, groups, "accuracy")
    assert content is not None and content.startswith(PNG)
    shown = {text.get_text() for text in drawn[0].axes[0].get_yticklabels()}
    assert {"$x^{", "<b>&", "日本", "a b", "_hidden"} <= shown
    assert max(map(len, shown)) < 40


def test_each_phase_has_its_own_loss_panel(drawn: list[Figure]) -> None:
    metrics = [
        Metric(phase, number, "train", None, name, 1.0 / number, 1.0)
        for phase in ("sft", "reward")
        for number in (1, 2)
        for name in ("train/loss", "train/accuracy")
    ]
    assert loss_plot(Curves(metrics)) is not None
    titles = [ax.get_title("left") for ax in drawn[0].axes]
    assert titles == ["Loss in training, phase sft", "Loss in training, phase reward"]
    assert [lines(ax) for ax in drawn[0].axes] == [{"train/loss": [1.0, 0.5]}] * 2


def test_fairness_shows_index_and_gap(make_run: Callable[..., Path], drawn: list[Figure]) -> None:
    assert fairness_plot(curves_of(make_run("run"))) is not None
    index, gap = drawn[0].axes
    assert lines(index)["unseen groups"] == pytest.approx([0.999, 0.9989, 0.9988, 0.9987])
    assert lines(gap)["training groups"] == pytest.approx([0.02] * 4)


def test_the_gap_of_any_score_is_drawn(drawn: list[Figure]) -> None:
    metrics = [Metric("a", n, "eval", None, "test/accuracy_gap", 0.1 * n, 1.0) for n in (0, 1)]
    assert fairness_plot(Curves(metrics)) is not None
    assert [ax.get_title("left") for ax in drawn[0].axes] == ["Accuracy gap (lower is fairer)"]


def test_populations_are_of_people_where_a_group_is_in_both() -> None:
    apart = {"a": {"test/accuracy": 0.5, "train/accuracy": 0.5}, "b": {"unseen/accuracy": 0.5}}
    assert populations_of(apart) is POPULATIONS and populations_of({}) is POPULATIONS
    assert populations_of({**apart, "b": {"unseen/accuracy": 0.5, "test/kl": 1.0}}) is PEOPLE


def test_plots_name_people_where_a_group_is_in_both(drawn: list[Figure]) -> None:
    populations = ("test", "unseen")
    metrics = [Metric("a", n, "eval", None, f"{p}/accuracy", 0.5 + n / 9, 1.0) for n in (0, 1) for p in populations]
    run_plots(Curves(metrics), {}, {"g": {f"{p}/accuracy": 0.5 for p in populations}}, "test/accuracy")
    assert [[text.get_text() for text in figure.legends[0].get_texts()] for figure in drawn] == [
        ["training people: mean", "unseen people: mean"],
        ["training people", "unseen people"],
    ]
