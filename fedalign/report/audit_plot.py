"""The plot of a privacy audit: canaries' scores on both sides, and the bounds on epsilon beside the claim."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes

from fedalign.privacy.audit import AuditResult
from fedalign.privacy.audit_bound import CanaryScores
from fedalign.report import canvas

_BINS = 40
_POINTS = 200


def audit_plot(result: AuditResult, scores: CanaryScores) -> bytes:
    """Draw an audit as PNG.

    Left are the scores of included and of held-out canaries, as histograms of equal area under their fitted normals.
    Right is a row each for the claim, whose line runs through all, the bounds, the deciding one first, and the
    estimate; a bound above the claim stands out by its colour.

    Parameters
    ----------
    result : AuditResult
    scores : CanaryScores
        The ones that were audited.
    """
    figure, (left, right) = canvas.panels(2, width=9.6, height=2.4 + 0.3 * len(result.bounds))
    _scores_panel(left, result, scores)
    _bounds_panel(right, result)
    canvas.legend(left)
    return canvas.png(figure)


def _scores_panel(ax: Axes, result: AuditResult, scores: CanaryScores) -> None:
    every = np.concatenate([scores.included, scores.held_out])
    edges = np.histogram_bin_edges(every, bins=_BINS)
    grid = np.linspace(edges[0], edges[-1], _POINTS)
    sides = (
        ("held-out", scores.held_out, result.held_out, canvas.BLUE),
        ("included", scores.included, result.included, canvas.ORANGE),
    )
    for name, values, fit, colour in sides:
        ax.hist(
            values, bins=edges.tolist(), density=True, color=colour, alpha=0.4, label=f"{len(values)} {name} canaries"
        )
        if fit.std > 0:
            height = np.exp(-(((grid - fit.mean) / fit.std) ** 2) / 2) / (fit.std * math.sqrt(2 * math.pi))
            ax.plot(grid, height, color=colour, linewidth=1.8)
    canvas.title(ax, "Scores of the canaries")
    ax.set_xlabel("score", fontsize=9, color=canvas.INK)
    ax.set_ylabel("density", fontsize=9, color=canvas.INK)


def _bounds_panel(ax: Axes, result: AuditResult) -> None:
    rows = [] if result.claimed is None else [("claimed", result.claimed, "s", canvas.INK)]
    for bound in result.bounds:
        beyond = result.claimed is not None and bound.epsilon > result.claimed
        name = f"≥ {bound.name}" + (", decides" if bound is result.main else "")
        rows.append((name, bound.epsilon, ">", canvas.ORANGE if beyond else canvas.BLUE))
    rows.append(("estimate, no bound", result.estimate, "d", canvas.MUTED))
    for row, (_, epsilon, marker, colour) in enumerate(rows):
        # What is infinite has no place on the axis, and says so in its text.
        if math.isfinite(epsilon):
            ax.plot([epsilon], [row], marker=marker, color=colour, markersize=8, linestyle="", clip_on=False, zorder=3)
        text = f"{epsilon:.2f}" if math.isfinite(epsilon) else "infinite"
        ax.text(1.02, row, text, transform=ax.get_yaxis_transform(), va="center", fontsize=8.5, color=canvas.INK)
    if result.claimed is not None and math.isfinite(result.claimed):
        ax.axvline(result.claimed, color=canvas.INK, linewidth=1.2, linestyle="--", zorder=2)
    canvas.title(ax, f"Epsilon at delta {result.delta:g}: {result.verdict}")
    canvas.category_axis(ax, [name for name, *_ in rows])
    shown = [epsilon for _, epsilon, *_ in rows if math.isfinite(epsilon)]
    ax.set_xlim(0, 1.08 * max([*shown, 0.1]))
    ax.set_xlabel(f"epsilon (all bounds hold at once with {100 * result.confidence:g} %)", fontsize=9, color=canvas.INK)
