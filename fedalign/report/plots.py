"""The plots of one run: headline metric, groups, training loss and fairness."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes

from fedalign.report import canvas
from fedalign.report.curves import Curve, Curves

Populations = Mapping[str, tuple[str, str]]
"""The populations that are evaluated: how a plot calls them, and their colour."""

POPULATIONS: Populations = {"test": ("training groups", canvas.BLUE), "unseen": ("unseen groups", canvas.ORANGE)}

PEOPLE: Populations = {"test": ("training people", canvas.BLUE), "unseen": ("unseen people", canvas.ORANGE)}
"""Where new people belong to the groups that took part, as in pair data."""

_MOST_BARS = 40


def run_plots(
    curves: Curves, metrics: Mapping[str, float], groups: Mapping[str, Mapping[str, float]], headline: str
) -> dict[str, bytes]:
    """Draw every plot that the run has numbers for.

    Parameters
    ----------
    curves : Curves
        The run's metrics over rounds.
    metrics : mapping from metric name to final value
    groups : mapping from group to (mapping from metric name to final value)
    headline : str
        Name of the metric that matters most, such as ``unseen/alignment_score``; both populations are drawn.

    Returns
    -------
    dict from file stem to PNG bytes
    """
    stem = headline.partition("/")[2] or headline
    populations = populations_of(groups)
    drawn = {
        "headline": headline_plot(curves, stem, populations),
        "groups": groups_plot(metrics, groups, stem, populations),
        "training_loss": loss_plot(curves),
        "fairness": fairness_plot(curves, populations),
    }
    return {name: content for name, content in drawn.items() if content is not None}


def populations_of(groups: Mapping[str, Mapping[str, float]]) -> Populations:
    """Return how to call the populations: by people when a group is in both, by groups when they are apart."""
    found = [{name.partition("/")[0] for name in values} for values in groups.values()]
    return PEOPLE if any(set(POPULATIONS) <= populations for populations in found) else POPULATIONS


def headline_plot(curves: Curves, stem: str, populations: Populations = POPULATIONS) -> bytes | None:
    """Draw the mean of each population over rounds, its worst group, and the span of its groups."""
    means = over_rounds(curves, stem)
    if not means:
        return None
    figure, (ax,) = canvas.panels(1)
    for population, mean in means.items():
        label, colour = populations[population]
        draw_line(ax, mean, colour, f"{label}: mean")
        span = curves.extremes(f"{population}/{stem}")
        if span is not None:
            ax.fill_between(span[0].steps, span[0].values, span[1].values, color=colour, alpha=0.10, linewidth=0)
        worst = curves.get(f"{population}/{stem}_worst")
        if worst is None and span is not None:
            worst = span[0]
        if worst is not None:
            draw_line(ax, worst, colour, f"{label}: worst group", dashed=True)
    canvas.title(ax, f"{_words(stem)} over rounds")
    canvas.round_axis(ax, list(curves.phases.values()))
    canvas.legend(ax)
    return canvas.png(figure)


def groups_plot(
    metrics: Mapping[str, float],
    groups: Mapping[str, Mapping[str, float]],
    stem: str,
    populations: Populations = POPULATIONS,
) -> bytes | None:
    """Draw a bar for each group's final value, sorted, with each population's mean as a line."""
    bars = [
        (values[f"{population}/{stem}"], group, population)
        for group, values in groups.items()
        for population in populations
        if f"{population}/{stem}" in values
    ]
    if not bars:
        return None
    bars.sort(key=lambda bar: (-bar[0], bar[1]))
    shown = bars if len(bars) <= _MOST_BARS else bars[: _MOST_BARS // 2] + bars[-_MOST_BARS // 2 :]
    figure, (ax,) = canvas.panels(1, height=1.2 + 0.27 * len(shown))
    for population, (label, colour) in populations.items():
        rows = [row for row, bar in enumerate(shown) if bar[2] == population]
        if not rows:
            continue
        ax.barh(rows, [shown[row][0] for row in rows], height=0.7, color=colour, label=label)
        mean = metrics.get(f"{population}/{stem}")
        if mean is not None:
            ax.axvline(mean, color=colour, linewidth=1.4, linestyle="--", zorder=0.5, label=f"mean {mean:.3f}")
    for row, bar in enumerate(shown):
        # In a column right of the axes, where a number never meets a bar or a mean line.
        ax.text(1.01, row, f"{bar[0]:.3f}", transform=ax.get_yaxis_transform(), va="center", fontsize=8.5)
    canvas.category_axis(ax, [bar[1] for bar in shown])
    hidden = len(bars) - len(shown)
    canvas.title(ax, f"{_words(stem)} by group" + (f" ({hidden} in the middle not shown)" if hidden else ""))
    canvas.legend(ax)
    return canvas.png(figure)


def loss_plot(curves: Curves) -> bytes | None:
    """Draw each phase's training loss in its own panel, since losses of different phases share no unit."""
    losses = [
        (phase, name, curve)
        for phase in curves.phases
        for name in curves.of_phase(phase).names()
        if name.startswith("train/") and name.endswith("loss") and (curve := curves.of_phase(phase).get(name))
    ]
    if not losses:
        return None
    figure, axes = canvas.panels(len(losses), width=max(8.0, 4.0 * len(losses)), height=3.0)
    for ax, (phase, name, curve) in zip(axes, losses, strict=True):
        draw_line(ax, curve, canvas.BLUE, name)
        canvas.title(ax, f"{_words(name.removeprefix('train/'))} in training, phase {phase}")
        canvas.round_axis(ax, [])
    return canvas.png(figure)


def fairness_plot(curves: Curves, populations: Populations = POPULATIONS) -> bytes | None:
    """Draw the fairness index 1 / (1 + CoV^2) and the gap between best and worst group over rounds."""
    stems = dict.fromkeys(name.partition("/")[2] for name in curves.names())
    gaps = [stem for stem in stems if stem.endswith("_gap")]
    found = {measure: over_rounds(curves, measure) for measure in ("fairness_index", *gaps)}
    measures = {measure: by_population for measure, by_population in found.items() if by_population}
    if not measures:
        return None
    figure, axes = canvas.panels(len(measures), height=3.2)
    for ax, (measure, by_population) in zip(axes, measures.items(), strict=True):
        for population, curve in by_population.items():
            label, colour = populations[population]
            draw_line(ax, curve, colour, label)
        canvas.title(ax, f"{_words(measure)} ({'higher' if measure == 'fairness_index' else 'lower'} is fairer)")
        canvas.round_axis(ax, list(curves.phases.values()))
    canvas.legend(axes[0])
    return canvas.png(figure)


def over_rounds(curves: Curves, stem: str) -> dict[str, Curve]:
    """Return each population's curve of a metric, where it was measured more than once."""
    found = {population: curves.get(f"{population}/{stem}") for population in POPULATIONS}
    return {population: curve for population, curve in found.items() if curve is not None and len(curve.steps) > 1}


def draw_line(ax: Axes, curve: Curve, colour: str, label: str, *, dashed: bool = False) -> None:
    """Draw one curve; its points are marked when they are few."""
    (line,) = ax.plot(curve.steps, curve.values, color=colour, label=label)
    line.set_linestyle("--" if dashed else "-")
    line.set_linewidth(1.2 if dashed else 2.0)
    if not dashed and len(curve.steps) <= 25:
        line.set_marker("o")
        line.set_markersize(3.5)


def _words(name: str) -> str:
    return name.replace("_", " ").replace("/", " / ").capitalize()
