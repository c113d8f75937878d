"""The plot of the privacy experiment: score over epsilon."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes

from fedalign.report import canvas
from fedalign.report.statistics import mean_interval
from simulations.privacy.arms import DISTRIBUTED, EPSILONS, FAMILIES, LEVELS, UNIFORM
from simulations.privacy.record import Results

_TICKS = {**{level: level.removeprefix("eps") for level in LEVELS}, "clip": "no noise", "none": "none"}
_SINGLE = {DISTRIBUTED.name: ("distributed", "s", 0.16)}
"""Arms at epsilon 4 that are no line: label, marker, and how far beside the line's points they stand."""


def curve_plot(found: Results) -> bytes:
    """Draw every family's score at each level of privacy, mean and 95 % interval over seeds, as PNG."""
    figure, (ax,) = canvas.panels(1, height=4.4)
    for number, family in enumerate(FAMILIES):
        _line(ax, found, family.name, family.label, canvas.CATEGORIES[number])
    for name, (label, marker, shift) in _SINGLE.items():
        scores = [result.score for result in found.get(name, {}).values()]
        if scores:
            estimate, place = mean_interval(scores), LEVELS.index("eps4") + shift
            look: dict[str, Any] = {"color": canvas.BLUE, "markerfacecolor": "white", "markersize": 5, "linewidth": 1.2}
            text = f"{FAMILIES[0].label}, {label}"
            ax.errorbar(place, estimate.mean, yerr=estimate.half_width or 0.0, fmt=marker, label=text, **look)
    floor = [result.score for result in found.get(UNIFORM.name, {}).values()]
    if floor:
        mean = mean_interval(floor).mean
        ax.axhline(mean, color=canvas.MUTED, linewidth=1.2, linestyle=":", label=UNIFORM.label)
    ax.axvline(len(EPSILONS) - 0.5, color=canvas.GRID, linewidth=1.2)
    ax.set_xticks(range(len(LEVELS)), labels=[_TICKS[level] for level in LEVELS])
    ax.set_xlabel("epsilon of one client (a sub-sample of a country)", fontsize=9, color=canvas.INK)
    ax.set_ylabel("alignment score of the unseen countries", fontsize=9, color=canvas.INK)
    canvas.title(ax, "What privacy costs on GlobalOpinionQA")
    canvas.legend(ax)
    return canvas.png(figure)


def _line(ax: Axes, found: Results, family: str, label: str, colour: str) -> None:
    """Draw a family; the line joins budgets only, since clipping alone and nothing at all are other things."""
    seeds = {level: found.get(f"{family}_{level}", {}) for level in LEVELS}
    shown = [level for level in LEVELS if seeds[level]]
    if not shown:
        return
    estimates = {level: mean_interval([result.score for result in seeds[level].values()]) for level in shown}
    means = [estimates[level].mean for level in shown]
    widths = [estimates[level].half_width or 0.0 for level in shown]
    places = [LEVELS.index(level) for level in shown]
    ax.errorbar(places, means, yerr=widths, fmt="o", markersize=4, linewidth=1.4, color=colour, label=label)
    budgets = [place for place, level in enumerate(shown) if level.startswith("eps")]
    ax.plot([places[i] for i in budgets], [means[i] for i in budgets], color=colour, linewidth=1.6)
