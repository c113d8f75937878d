"""The plot of the experiment of private alignment: reward over epsilon, and over rounds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes

from fedalign.report import canvas
from fedalign.report.statistics import mean_interval
from simulations.dprlhf.arms import LEVELS, MAIN
from simulations.dprlhf.claims import aligned, pretrained, tuned
from simulations.dprlhf.record import Results, SeedResult

_TICKS = {level: level.removeprefix("eps") for level in LEVELS}


def plot(found: Results) -> bytes:
    """Draw both, means over seeds with 95 % intervals, as PNG."""
    figure, (left, right) = canvas.panels(2, width=11.0, height=4.4)
    _budgets(left, found)
    _rounds(right, found)
    return canvas.png(figure)


def _budgets(ax: Axes, found: Results) -> None:
    _points(ax, found, aligned, "aligned", canvas.BLUE, 0.06)
    _points(ax, found, tuned, "fine-tuned", canvas.ORANGE, -0.06)
    before = [pretrained(result) for level in LEVELS for result in found.get(level, {}).values()]
    if before:
        ax.axhline(mean_interval(before).mean, color=canvas.MUTED, linewidth=1.2, linestyle=":", label="pretrained")
    ax.set_xticks(range(len(LEVELS)), labels=[_TICKS[level] for level in LEVELS])
    ax.set_xlabel("epsilon of one user", fontsize=9, color=canvas.INK)
    _finish(ax, "Reward after training")


def _points(
    ax: Axes, found: Results, value: Callable[[SeedResult], float], label: str, colour: str, shift: float
) -> None:
    shown = [level for level in LEVELS if found.get(level)]
    if not shown:
        return
    estimates = [mean_interval([value(result) for result in found[level].values()]) for level in shown]
    places = [LEVELS.index(level) + shift for level in shown]
    means, widths = [e.mean for e in estimates], [e.half_width or 0.0 for e in estimates]
    ax.errorbar(places, means, yerr=widths, fmt="o-", markersize=4, linewidth=1.4, capsize=3, color=colour, label=label)


def _rounds(ax: Axes, found: Results) -> None:
    starts = []
    for number, arm in enumerate(MAIN):
        seeds = found.get(arm.name, {})
        if not seeds:
            continue
        curves = [_curve(result) for result in seeds.values()]
        rounds = sorted(set.intersection(*(set(curve) for curve in curves)))
        means = [float(np.mean([curve[each] for curve in curves])) for each in rounds]
        colour = canvas.CATEGORIES[number]
        ax.plot(rounds, means, marker="o", markersize=3, linewidth=1.5, color=colour, label=_label(arm.name))
        starts = [0, _last(next(iter(seeds.values())), "sft")]
    canvas.round_axis(ax, starts)
    _finish(ax, "Reward while training (fine-tuning, then RL)")


def _label(level: str) -> str:
    return "no privacy" if level == "none" else f"epsilon {_TICKS[level]}"


def _last(result: SeedResult, phase: str) -> int:
    return max(number for own, number, _ in result.curve if own == phase)


def _curve(result: SeedResult) -> dict[int, float]:
    """Return reward by round, counted through both phases."""
    start = _last(result, "sft")
    return {number + (start if phase == "rl" else 0): reward for phase, number, reward in result.curve}


def _finish(ax: Axes, title: str) -> None:
    ax.set_ylabel("mean reward of the test prompts", fontsize=9, color=canvas.INK)
    canvas.title(ax, title)
    if ax.get_legend_handles_labels()[1]:
        ax.legend(frameon=False, fontsize=8, labelcolor=canvas.INK, loc="upper left")
