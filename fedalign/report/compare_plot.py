"""A comparison as a plot: every arm's mean, its interval and its seeds, a panel a metric."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fedalign.report import canvas
from fedalign.report.comparison import Comparison

_MOST_PANELS = 2


def compare_plot(comparison: Comparison) -> bytes:
    """Draw the first metrics of a comparison as PNG.

    Points and intervals rather than bars: what arms differ by is small beside their values, and a bar may not
    begin anywhere but at zero.
    """
    metrics = comparison.metrics[:_MOST_PANELS] or ("",)
    height = 1.1 + 0.42 * max(2, len(comparison.arms))
    figure, axes = canvas.panels(len(metrics), width=8.0, height=height)
    for index, (ax, metric) in enumerate(zip(axes, metrics, strict=True)):
        canvas.title(ax, metric)
        _panel(ax, comparison, metric)
        canvas.category_axis(ax, [arm.label for arm in comparison.arms])
        if index:
            ax.tick_params(axis="y", labelleft=False)
    return canvas.png(figure)


def _panel(ax: Axes, comparison: Comparison, metric: str) -> None:
    for row, arm in enumerate(comparison.arms):
        estimate = comparison.estimate(arm, metric)
        if estimate is None:
            continue
        colour = canvas.ORANGE if arm is comparison.baseline else canvas.BLUE
        seeds = list(arm.values(metric).values())
        ax.scatter(seeds, [row + 0.22] * len(seeds), s=9, color=canvas.MUTED, alpha=0.6, linewidths=0)
        ax.errorbar(
            estimate.mean,
            row,
            xerr=estimate.half_width,
            fmt="o",
            color=colour,
            markersize=6,
            capsize=3,
            linewidth=2,
        )
    ax.margins(x=0.12)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=5))
