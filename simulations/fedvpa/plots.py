"""The plots of the FedVPA-GP experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fedalign.metrics.latent import project
from fedalign.report import canvas
from fedalign.report.render import read_latents
from fedalign.report.statistics import mean_interval
from simulations.fedvpa.arms import ARMS, SETTINGS
from simulations.fedvpa.run import place
from simulations.fedvpa.tables import Results

if TYPE_CHECKING:
    from simulations.fedvpa.results import Use

_LABELS = {arm.name: arm.label for arm in ARMS}
_SPACES = ("fedvpl", "full")
"""Arms whose latents are shown side by side."""


@dataclass(frozen=True)
class Series:
    """One colour of dots: a metric in a setting."""

    label: str
    setting: str
    metric: str


def plots(found: Results, use: Mapping[str, Use], output: Path) -> dict[str, bytes]:
    """Return every plot that there are numbers for, by file stem, as PNG.

    Parameters
    ----------
    found : Results
    use : mapping from arm to Use
    output : Path
        Where the runs are, for their latents.
    """
    both = {"people who train": "test", "unseen people": "unseen"}
    first = SETTINGS[0].name
    dialogues = {"One category a client": "strict", "Both categories on every client": "mixed"}
    drawn = {
        "accuracy_conflict": accuracy_plot(
            found,
            {"Conflicting pairs": [Series(label, first, f"{p}/accuracy_conflict") for label, p in both.items()]},
        ),
        "accuracy_hh": accuracy_plot(
            found,
            {
                title: [Series(f"{n} clients", f"hh_{partition}_{n}", "test/accuracy") for n in (10, 50, 100)]
                for title, partition in dialogues.items()
            },
        ),
        "accuracy_llmfao": accuracy_plot(
            found,
            {"LLMFAO, all pairs": [Series(label, "llmfao", f"{p}/accuracy") for label, p in both.items()]},
        ),
        "latent_space": latent_space_plot(found, output),
        "latent_use": latent_use_plot(use),
    }
    return {name: content for name, content in drawn.items() if content is not None}


def accuracy_plot(found: Results, panels: Mapping[str, Sequence[Series]]) -> bytes | None:
    """Draw mean accuracy with its 95 % interval, an arm a row, a panel a title; None without numbers."""
    shown = {title: [s for s in series if s.setting in found] for title, series in panels.items()}
    shown = {title: series for title, series in shown.items() if series}
    used = {name for series in shown.values() for s in series for name in found[s.setting]}
    names = [arm.name for arm in ARMS if arm.name in used]
    if not names:
        return None
    figure, axes = canvas.panels(len(shown), height=1.3 + 0.32 * len(names))
    for index, (ax, (title, series)) in enumerate(zip(axes, shown.items(), strict=True)):
        _dots(ax, found, names, series)
        canvas.title(ax, title)
        canvas.category_axis(ax, [_LABELS[name] for name in names])
        ax.set_xlabel("accuracy (%)", fontsize=9, color=canvas.INK)
        if index:
            ax.tick_params(axis="y", labelleft=False)
    canvas.legend(axes[0])
    return canvas.png(figure)


def _dots(ax: Axes, found: Results, names: Sequence[str], series: Sequence[Series]) -> None:
    ax.axvline(50, color=canvas.MUTED, linewidth=0.8, linestyle=":")
    for number, one in enumerate(series):
        shift = 0.16 * (number - (len(series) - 1) / 2)
        rows, means, widths = [], [], []
        for row, name in enumerate(names):
            values = found[one.setting].get(name, {}).get(one.metric)
            if values:
                estimate = mean_interval(list(values.values()))
                rows.append(row + shift)
                means.append(100 * estimate.mean)
                widths.append(100 * (estimate.half_width or 0.0))
        colour = canvas.CATEGORIES[number]
        ax.errorbar(means, rows, xerr=widths, fmt="o", markersize=4, linewidth=1.4, color=colour, label=one.label)


def latent_space_plot(found: Results, output: Path) -> bytes | None:
    """Draw people's latents on two principal components, an arm a panel, for the first seed that all have."""
    arms = found.get(SETTINGS[0].name, {})
    seeds = [set(arms[name]["seconds"]) for name in _SPACES if name in arms]
    shared = set.intersection(*seeds) if len(seeds) == len(_SPACES) else set()
    if not shared:
        return None
    latents = {name: read_latents(place(output, SETTINGS[0].name, name, min(shared)) / "model") for name in _SPACES}
    if not all(latents.values()):
        return None
    figure, axes = canvas.panels(len(_SPACES), height=4.4)
    for ax, (name, groups) in zip(axes, latents.items(), strict=True):
        _cloud(ax, {group: means.numpy() for group, means in groups.items()})
        canvas.title(ax, _LABELS[name])
    # One scale for all, or a collapsed latent would look like any other.
    limit = max(abs(bound) for ax in axes for bound in (*ax.get_xlim(), *ax.get_ylim()))
    for ax in axes:
        ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    canvas.legend(axes[0])
    return canvas.png(figure)


def _cloud(ax: Axes, groups: Mapping[str, npt.NDArray[np.float32]]) -> None:
    import torch

    means = torch.from_numpy(np.concatenate(list(groups.values())))
    projection = project(means)
    start = 0
    for number, (group, own) in enumerate(groups.items()):
        part = projection.points[start : start + len(own)]
        start += len(own)
        colour, marker = canvas.CATEGORIES[number % len(canvas.CATEGORIES)], "o^sDvP"[number % 6]
        ax.scatter(part[:, 0], part[:, 1], s=28, alpha=0.75, linewidths=0, marker=marker, color=colour, label=group)
    for number, axis in enumerate((ax.xaxis, ax.yaxis)):
        share = f"{100 * float(projection.explained[number]):.0f} %"
        axis.set_label_text(f"component {number + 1} ({share} of the variance)", fontsize=9, color=canvas.INK)


def latent_use_plot(use: Mapping[str, Use]) -> bytes | None:
    """Draw KL and active units over rounds, a line an arm."""
    if not use:
        return None
    figure, axes = canvas.panels(2, height=5.2, stacked=True)
    titles = ("KL divergence from the arm's own prior (nats)", "Active units")
    for ax, title, key in zip(axes, titles, ("kl", "active_units"), strict=True):
        for number, (name, one) in enumerate(use.items()):
            colour = canvas.CATEGORIES[number]
            ax.plot(one.rounds, getattr(one, key), marker="o", markersize=3, color=colour, label=_LABELS[name])
        canvas.title(ax, title)
        canvas.round_axis(ax, [0])
        ax.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=key == "active_units"))
    axes[0].set_xlabel("")
    canvas.legend(axes[0])
    return canvas.png(figure)
