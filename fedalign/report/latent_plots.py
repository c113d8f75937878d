"""The plots of a model with a latent variable a person: whose z predicts, how much z is used, and where people lie."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from fedalign.report import canvas
from fedalign.report.curves import Curves
from fedalign.report.plots import POPULATIONS, Populations, draw_line, over_rounds, populations_of

WHOSE = {"own z": "", "prior mean": "_prior_z", "another group's z": "_swapped_z"}
"""Whose latent a prediction was made with: how a plot calls it, and what it adds to the metric's name."""

_PAIRS = {"Accuracy, all pairs": "", "Accuracy, conflicting pairs": "_conflict"}
_MARKERS = ("o", "^", "s", "D", "v", "P")
_CHANCE = 0.5


def latent_plots(
    curves: Curves,
    metrics: Mapping[str, float],
    groups: Mapping[str, Mapping[str, float]],
    latents: Mapping[str, Tensor],
) -> dict[str, bytes]:
    """Draw every plot of the latent variable that the run has numbers for; none for a model without one.

    Parameters
    ----------
    curves : Curves
        The run's metrics over rounds.
    metrics : mapping from metric name to final value
    groups : mapping from group to (mapping from metric name to final value)
    latents : mapping from group to Tensor, shape (people, d)
        Posterior means.

    Returns
    -------
    dict from file stem to PNG bytes
    """
    populations = populations_of(groups)
    drawn = {
        "accuracy_by_z": accuracy_by_z_plot(metrics, groups, populations),
        "latent_use": latent_use_plot(curves, populations),
        "latent_space": latent_space_plot(latents),
    }
    return {name: content for name, content in drawn.items() if content is not None}


def accuracy_by_z_plot(
    metrics: Mapping[str, float],
    groups: Mapping[str, Mapping[str, float]],
    populations: Populations = POPULATIONS,
) -> bytes | None:
    """Draw final accuracy with people's own latent, the prior's mean and another group's latent, a row each."""
    found = {title: _rows(metrics, populations, pairs) for title, pairs in _PAIRS.items()}
    shown = {title: rows for title, rows in found.items() if any(whose != "own z" for whose in rows)}
    if not shown:
        return None
    names = [whose for whose in WHOSE if any(whose in rows for rows in shown.values())]
    figure, axes = canvas.panels(len(shown), height=1.6 + 0.62 * len(names))
    for index, (ax, (title, rows)) in enumerate(zip(axes, shown.items(), strict=True)):
        _whose_panel(ax, names, rows, metrics, groups, populations)
        canvas.title(ax, title)
        canvas.category_axis(ax, names)
        if index:
            ax.tick_params(axis="y", labelleft=False)
    canvas.legend(axes[0])
    return canvas.png(figure)


def latent_use_plot(curves: Curves, populations: Populations = POPULATIONS) -> bytes | None:
    """Draw the KL divergence from the prior and the number of active units over rounds, one above the other.

    Only phases that count active units are drawn: in others a KL divergence is that of a policy.
    """
    own = [phase for phase in curves.phases if any(_is_count(name) for name in curves.of_phase(phase).names())]
    curves = curves.of_phase(*own)
    found = {
        "KL divergence from the prior (nats)": over_rounds(curves, "kl"),
        "Active units": over_rounds(curves, "active_units"),
    }
    shown = {title: lines for title, lines in found.items() if lines}
    if not shown:
        return None
    figure, axes = canvas.panels(len(shown), height=0.8 + 2.2 * len(shown), stacked=True)
    for ax, (title, lines) in zip(axes, shown.items(), strict=True):
        for population, curve in lines.items():
            label, colour = populations[population]
            draw_line(ax, curve, colour, label)
        canvas.title(ax, title)
        canvas.round_axis(ax, list(curves.phases.values()))
        # From zero, where a collapsed latent lies, with room for a line at either end.
        counted = title == "Active units"
        top = max(1.0 if counted else 0.1, *(float(curve.values.max()) for curve in lines.values()))
        ax.set_ylim(-0.04 * top, 1.08 * top)
        ax.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=counted))
        if ax is not axes[-1]:
            ax.set_xlabel("")
    canvas.legend(max(axes, key=lambda ax: len(ax.get_legend_handles_labels()[0])))
    return canvas.png(figure)


def latent_space_plot(latents: Mapping[str, Tensor]) -> bytes | None:
    """Draw a dot a person on the first two principal components, in its group's colour and shape.

    The largest groups have a colour of their own; others share grey.
    """
    ordered = sorted(latents, key=lambda group: (-len(latents[group]), group))
    means = [latents[group] for group in ordered]
    if not means or not all(bool(torch.isfinite(each).all()) for each in means):
        return None
    # Only here, since scikit-learn is slow to load and most runs have no latents.
    from fedalign.metrics.latent import project

    projection = project(torch.cat(means))
    parts = torch.split(projection.points, [len(each) for each in means])
    figure, (ax,) = canvas.panels(1, height=5.6)
    own = len(canvas.CATEGORIES) if len(ordered) <= len(canvas.CATEGORIES) else len(canvas.CATEGORIES) - 1
    size = 42.0 if len(projection.points) <= 200 else 16.0
    # The smallest groups come last, on top of the others.
    for index, part in enumerate(parts):
        marker, colour = (_MARKERS[index], canvas.CATEGORIES[index]) if index < own else (".", canvas.MUTED)
        ax.scatter(part[:, 0], part[:, 1], s=size, marker=marker, color=colour, alpha=0.75, linewidths=0)
    canvas.title(ax, f"Latents of {len(projection.points)} people by group")
    for number, axis in enumerate((ax.xaxis, ax.yaxis)):
        share = f"{100 * float(projection.explained[number]):.0f} % of the variance"
        axis.set_label_text(f"principal component {number + 1} ({share})", fontsize=9, color=canvas.INK)
    # Distances mean the same in both directions.
    ax.set_aspect("equal", adjustable="datalim")
    _group_legend(ax, ordered, own)
    return canvas.png(figure)


def _rows(metrics: Mapping[str, float], populations: Populations, pairs: str) -> dict[str, str]:
    """Return the stem of each accuracy that was measured on some pairs, by whose latent."""
    stems = {whose: f"accuracy{suffix}{pairs}" for whose, suffix in WHOSE.items()}
    return {whose: stem for whose, stem in stems.items() if any(f"{p}/{stem}" in metrics for p in populations)}


def _whose_panel(
    ax: Axes,
    names: list[str],
    stems: Mapping[str, str],
    metrics: Mapping[str, float],
    groups: Mapping[str, Mapping[str, float]],
    populations: Populations,
) -> None:
    """Draw one bar a population in every row, its value right of it, and its groups as dots."""
    present = [p for p in populations if any(f"{p}/{stem}" in metrics for stem in stems.values())]
    height = 0.7 / len(present)
    for position, population in enumerate(present):
        label, colour = populations[population]
        for whose, stem in stems.items():
            name = f"{population}/{stem}"
            if name not in metrics:
                continue
            row = names.index(whose) + (position - (len(present) - 1) / 2) * height
            ax.barh(row, metrics[name], height=0.9 * height, color=colour, label=label)
            label = "_drawn"
            ax.text(1.01, row, f"{metrics[name]:.3f}", transform=ax.get_yaxis_transform(), va="center", fontsize=8.5)
            dots = [values[name] for values in groups.values() if name in values]
            ax.scatter(dots, [row] * len(dots), s=14, color="white", edgecolors=canvas.INK, linewidths=0.8, zorder=3)
    ax.axvline(_CHANCE, color=canvas.INK, linewidth=1.0, linestyle=":", zorder=2)
    ax.set_xlim(0, 1.02)


def _group_legend(ax: Axes, ordered: list[str], own: int) -> None:
    """Name the groups below the figure, whatever characters their names hold."""
    entries = [(canvas.shorten(group), _MARKERS[i], canvas.CATEGORIES[i]) for i, group in enumerate(ordered[:own])]
    if len(ordered) > own:
        entries.append((f"{len(ordered) - own} smaller groups", ".", canvas.MUTED))
    for name, marker, colour in entries:
        # A label that begins with an underscore would be left out.
        label = f" {name}" if name.startswith("_") or not name else name
        ax.add_line(Line2D([], [], linestyle="", marker=marker, color=colour, markersize=6.5, label=label))
    canvas.legend(ax)


def _is_count(name: str) -> bool:
    return name.endswith("/active_units")
