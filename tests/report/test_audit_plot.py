"""The audit's plot: that it shows the scores, the fits, the claim and the bounds it was given."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from fedalign.privacy.audit import AuditResult
from fedalign.privacy.audit_bound import Bound, CanaryScores
from fedalign.privacy.canary_audit import Normal, fit_normal
from fedalign.report import canvas
from fedalign.report.audit_plot import audit_plot

pytestmark = pytest.mark.usefixtures("real_plots")

SCORES = CanaryScores(np.array([1.0, 2.0, 2.0, 3.0]), np.array([-1.0, 0.0, 1.0]), fair_coins=True)


def result(claimed: float | None, *epsilons: float, estimate: float = 3.0) -> AuditResult:
    bounds = tuple(Bound(f"b{i}", e, 5.0, 0.975, "", "") for i, e in enumerate(epsilons))
    fits = fit_normal(SCORES.included), fit_normal(SCORES.held_out)
    return AuditResult(claimed, 1e-5, 0.95, 4, 3, bounds, estimate, *fits)


def points(ax: Axes) -> dict[int, tuple[float, str]]:
    """Return the place and the colour of each row's marker."""
    return {
        int(line.get_ydata()[0]): (float(line.get_xdata()[0]), to_hex(str(line.get_color())).upper())  # type: ignore[index]
        for line in ax.get_lines()
        if line.get_marker() not in ("None", None, "")
    }


def rows(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.get_yticklabels()]


def test_it_is_a_png() -> None:
    assert audit_plot(result(2.0, 1.0), SCORES).startswith(b"\x89PNG\r\n\x1a\n")


def test_scores_are_histograms_of_area_one_under_their_fits(drawn: list[Figure]) -> None:
    audit_plot(result(2.0, 1.0), SCORES)
    left, _ = drawn[0].axes
    for colour, fit in ((canvas.BLUE, fit_normal(SCORES.held_out)), (canvas.ORANGE, fit_normal(SCORES.included))):
        bars = [bar for bar in left.patches if to_hex(bar.get_facecolor()).upper() == colour]
        assert sum(bar.get_height() * bar.get_width() for bar in bars) == pytest.approx(1.0)  # type: ignore[attr-defined]
        (curve,) = [line for line in left.get_lines() if to_hex(str(line.get_color())).upper() == colour]
        x, y = np.asarray(curve.get_xdata()), np.asarray(curve.get_ydata())
        assert x[np.argmax(y)] == pytest.approx(fit.mean, abs=0.02)
        assert y.max() == pytest.approx(1 / (fit.std * np.sqrt(2 * np.pi)), rel=1e-3)
    assert [t.get_text() for t in drawn[0].legends[0].get_texts()] == ["3 held-out canaries", "4 included canaries"]


def test_claim_bounds_and_estimate_have_a_row_each(drawn: list[Figure]) -> None:
    audit_plot(result(2.0, 1.0, 2.5), SCORES)
    _, right = drawn[0].axes
    assert rows(right) == ["claimed", "≥ b0, decides", "≥ b1", "estimate, no bound"]
    assert points(right) == {
        0: (2.0, canvas.INK.upper()),
        1: (1.0, canvas.BLUE),
        2: (2.5, canvas.ORANGE),
        3: (3.0, canvas.MUTED.upper()),
    }
    (claim,) = [line for line in right.get_lines() if line.get_linestyle() == "--"]
    assert list(np.asarray(claim.get_xdata())) == [2.0, 2.0]
    assert [text.get_text() for text in right.texts] == ["2.00", "1.00", "2.50", "3.00"]
    assert right.get_title("left") == "Epsilon at delta 1e-05: doubtful"
    assert right.get_xlim() == pytest.approx((0.0, 3.24))


def test_without_a_claim_there_is_no_line(drawn: list[Figure]) -> None:
    audit_plot(result(None, 1.0), SCORES)
    _, right = drawn[0].axes
    assert rows(right) == ["≥ b0, decides", "estimate, no bound"]
    assert not [line for line in right.get_lines() if line.get_linestyle() == "--"]


def test_what_is_infinite_is_written_but_not_drawn(drawn: list[Figure]) -> None:
    audit_plot(result(float("inf"), 0.0, estimate=float("inf")), SCORES)
    _, right = drawn[0].axes
    assert set(points(right)) == {1}
    assert [text.get_text() for text in right.texts] == ["infinite", "0.00", "infinite"]


def test_scores_without_a_spread_have_no_curve(drawn: list[Figure]) -> None:
    flat = CanaryScores(np.ones(5), np.zeros(4), fair_coins=True)
    audit_plot(
        AuditResult(1.0, 1e-5, 0.95, 5, 4, result(1.0, 0.5).bounds, 2.0, Normal(1.0, 0.0), Normal(0.0, 0.0)), flat
    )
    assert drawn[0].axes[0].get_lines()[:] == []
