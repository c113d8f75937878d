"""Plots of the latent variable: that they show the numbers they were given, and are there only for such models."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from fedalign.metrics.latent import project
from fedalign.metrics.record import Metric
from fedalign.report import canvas
from fedalign.report.curves import Curves
from fedalign.report.latent_plots import accuracy_by_z_plot, latent_plots, latent_space_plot, latent_use_plot
from fedalign.report.plots import PEOPLE

pytestmark = pytest.mark.usefixtures("real_plots")

PNG = b"\x89PNG\r\n\x1a\n"
METRICS = {
    "test/accuracy": 0.75,
    "test/accuracy_prior_z": 0.625,
    "test/accuracy_swapped_z": 0.375,
    "unseen/accuracy": 0.7,
    "unseen/accuracy_prior_z": 0.6,
}
GROUPS = {"a": {"test/accuracy": 0.5, "unseen/accuracy": 0.65}, "b": {"test/accuracy": 1.0}}


def bars(ax: Axes) -> dict[tuple[int, str], float]:
    """Return the length of each bar by row and colour."""
    return {
        (round(bar.get_y() + bar.get_height() / 2), to_hex(bar.get_facecolor()).upper()): bar.get_width()  # type: ignore[attr-defined]
        for bar in ax.patches
    }


def lines(ax: Axes) -> dict[str, list[float]]:
    return {str(line.get_label()): [float(y) for y in line.get_ydata()] for line in ax.get_lines()}  # type: ignore[union-attr]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def metric(phase: str, number: int, name: str, value: float, group: str | None = None) -> Metric:
    return Metric(phase, number, "eval", group, name, value, 1.0)


def test_a_survey_run_has_none_of_them() -> None:
    curves = Curves([metric("gpo", n, "unseen/alignment_score", 0.5) for n in (0, 1)])
    assert latent_plots(curves, {"unseen/alignment_score": 0.5}, {"a": {"unseen/alignment_score": 0.5}}, {}) == {}


def test_a_model_without_a_latent_has_none_of_them() -> None:
    curves = Curves([metric("bt", n, name, 0.5) for n in (0, 1) for name in ("test/accuracy", "test/kl")])
    assert latent_plots(curves, {"test/accuracy": 0.5, "test/accuracy_conflict": 0.5}, GROUPS, {}) == {}


def test_a_model_with_a_latent_has_all_of_them() -> None:
    curves = Curves([metric("vpl", n, name, 0.5) for n in (0, 1) for name in ("test/active_units", "test/kl")])
    plots = latent_plots(curves, METRICS, GROUPS, {"a": torch.eye(3), "b": -torch.eye(3)})
    assert list(plots) == ["accuracy_by_z", "latent_use", "latent_space"]
    assert all(content.startswith(PNG) for content in plots.values())


def test_accuracy_has_a_row_for_whose_latent_and_a_bar_a_population(drawn: list[Figure]) -> None:
    assert accuracy_by_z_plot(METRICS, GROUPS, PEOPLE) is not None
    (ax,) = drawn[0].axes
    assert [text.get_text() for text in ax.get_yticklabels()] == ["own z", "prior mean", "another group's z"]
    assert bars(ax) == {
        (0, canvas.BLUE): 0.75, (1, canvas.BLUE): 0.625, (2, canvas.BLUE): 0.375,
        (0, canvas.ORANGE): 0.7, (1, canvas.ORANGE): 0.6,
    }  # fmt: skip
    assert sorted(text.get_text() for text in ax.texts) == ["0.375", "0.600", "0.625", "0.700", "0.750"]
    assert legend(drawn[0]) == ["training people", "unseen people"]


def test_groups_are_rings_on_their_own_bar(drawn: list[Figure]) -> None:
    accuracy_by_z_plot(METRICS, GROUPS, PEOPLE)
    (ax,) = drawn[0].axes
    rings = [tuple(np.asarray(ring.get_offsets()).round(3)[:, 0]) for ring in ax.collections]
    assert (0.5, 1.0) in rings and (0.65,) in rings


def test_conflicting_pairs_have_a_panel_of_their_own(drawn: list[Figure]) -> None:
    conflicts = {f"test/accuracy{whose}_conflict": value for whose, value in (("", 0.9), ("_swapped_z", 0.1))}
    accuracy_by_z_plot({**METRICS, **conflicts}, {})
    every, conflict = drawn[0].axes
    assert every.get_title("left") == "Accuracy, all pairs"
    assert conflict.get_title("left") == "Accuracy, conflicting pairs"
    # The rows are the same in both: what was not measured is left free.
    assert bars(conflict) == {(0, canvas.BLUE): 0.9, (2, canvas.BLUE): 0.1}


def test_one_population_needs_no_legend(drawn: list[Figure]) -> None:
    accuracy_by_z_plot({"test/accuracy": 0.5, "test/accuracy_prior_z": 0.5}, {})
    assert drawn[0].legends == []
    assert [text.get_text() for text in drawn[0].axes[0].get_yticklabels()] == ["own z", "prior mean"]


def test_latent_use_is_two_panels_above_each_other(drawn: list[Figure]) -> None:
    metrics = [
        metric("selector", number, name, value * number)
        for number in (0, 5, 10)
        for name, value in (("test/kl", 0.5), ("unseen/kl", 0.25), ("test/active_units", 1.0), ("train/kl", 9.0))
    ]
    assert latent_use_plot(Curves(metrics), PEOPLE) is not None
    kl, active = drawn[0].axes
    assert (kl.get_title("left"), active.get_title("left")) == ("KL divergence from the prior (nats)", "Active units")
    assert lines(kl) == {"training people": [0.0, 2.5, 5.0], "unseen people": [0.0, 1.25, 2.5]}
    assert lines(active) == {"training people": [0.0, 5.0, 10.0]}
    assert kl.get_position().y0 > active.get_position().y1
    assert legend(drawn[0]) == ["training people", "unseen people"]


def test_the_kl_of_a_policy_is_no_use_of_a_latent(drawn: list[Figure]) -> None:
    selector = [metric("selector", n, name, 1.0) for n in (0, 1, 2) for name in ("test/kl", "test/active_units")]
    policy = [metric("dpo", number, "test/kl", 77.0) for number in (0, 1)]
    assert latent_use_plot(Curves(policy)) is None
    latent_use_plot(Curves([*selector, *policy]))
    assert lines(drawn[-1].axes[0])["training groups"] == [1.0, 1.0, 1.0]


def test_a_collapsed_latent_is_a_line_above_the_axis(drawn: list[Figure]) -> None:
    metrics = [metric("vpl", n, name, 0.0) for n in (0, 1) for name in ("test/kl", "test/active_units")]
    latent_use_plot(Curves(metrics))
    for ax in drawn[0].axes:
        low, high = ax.get_ylim()
        assert low < 0 < 0.1 <= high


def test_a_single_evaluation_is_no_curve() -> None:
    assert latent_use_plot(Curves([metric("vpl", 0, "test/active_units", 3.0)])) is None


def test_people_are_dots_in_the_colour_and_shape_of_their_group(drawn: list[Figure]) -> None:
    generator = torch.Generator().manual_seed(0)
    latents = {"few": torch.randn(3, 8, generator=generator) + 4, "many": torch.randn(6, 8, generator=generator)}
    assert latent_space_plot(latents) is not None
    (ax,) = drawn[0].axes
    expected = project(torch.cat([latents["many"], latents["few"]]))
    many, few = ax.collections
    np.testing.assert_allclose(many.get_offsets(), expected.points[:6])
    np.testing.assert_allclose(few.get_offsets(), expected.points[6:])
    assert [to_hex(part.get_facecolor()[0]).upper() for part in (many, few)] == list(canvas.CATEGORIES[:2])
    assert not np.array_equal(many.get_paths()[0].vertices, few.get_paths()[0].vertices)
    assert legend(drawn[0]) == ["many", "few"]
    assert f"({100 * float(expected.explained[0]):.0f} % of the variance)" in ax.get_xlabel()


def test_small_groups_share_grey_where_colours_run_out(drawn: list[Figure]) -> None:
    latents = {f"g{index}": torch.eye(12)[: 12 - index] * (index + 1) for index in range(9)}
    latent_space_plot(latents)
    assert legend(drawn[0]) == ["g0", "g1", "g2", "g3", "g4", "4 smaller groups"]
    colours = [to_hex(part.get_facecolor()[0]) for part in drawn[0].axes[0].collections]
    assert len(set(colours[:5])) == 5 and set(colours[5:]) == {canvas.MUTED}
    latent_space_plot({f"g{index}": torch.eye(3) * index for index in range(6)})
    assert legend(drawn[1]) == [f"g{index}" for index in range(6)]


def test_names_are_drawn_as_they_are_whatever_they_hold(drawn: list[Figure]) -> None:
    names = ["$x^{", "日本", "_hidden", "", "x" * 300]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert latent_space_plot({name: torch.eye(3) for name in names}) is not None
    shown = [text.strip() for text in legend(drawn[0])]
    assert sorted(shown)[:3] == ["", "$x^{", "_hidden"] and "日本" in shown and max(map(len, shown)) < 40


def test_collapsed_latents_lie_on_one_point(drawn: list[Figure]) -> None:
    assert latent_space_plot({"a": torch.ones(4, 3), "b": torch.ones(2, 3)}) is not None
    assert "(0 % of the variance)" in drawn[0].axes[0].get_xlabel()


@pytest.mark.parametrize("latents", [{}, {"a": torch.tensor([[float("nan"), 0.0], [1.0, 0.0]])}])
def test_what_has_no_place_is_not_drawn(latents: dict[str, torch.Tensor]) -> None:
    assert latent_space_plot(latents) is None


@pytest.mark.slow
def test_a_run_without_latents_does_not_load_scikit_learn() -> None:
    program = (
        "import sys; from fedalign.report.latent_plots import latent_space_plot; from fedalign.report import render; "
        "assert latent_space_plot({}) is None; sys.exit('sklearn.decomposition' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
