"""The figure of the identifiability experiment: what types are worth to a model, over how much they differ."""

from __future__ import annotations

import numpy as np

from fedalign.report import canvas
from fedalign.report.statistics import paired_difference
from simulations.emdpo.arms import GAPS, OBSERVED
from simulations.emdpo.exact import divergence
from simulations.emdpo.record import Results, values_of

FRESH = "fresh_log_likelihood"
"""Score of annotators of whom nothing was known."""


def gain(found: Results, seen: str, gap: int) -> dict[int, float]:
    """Return by how much two types predict new annotators' judgments better than one, by seed, in nats a judgment."""
    two, one = (values_of(found, f"{seen}_b{gap}_k{types}", FRESH) for types in (2, 1))
    return {seed: value - one[seed] for seed, value in two.items() if seed in one}


def identifiability_plot(found: Results) -> bytes:
    """Draw the exact gain and the measured one, mean and 95 % interval over seeds, as PNG."""
    figure, (ax,) = canvas.panels(1, height=4.4)
    gaps = np.linspace(0, max(GAPS) + 0.3, 60)
    for number, (seen, (label, form, judgments)) in enumerate(OBSERVED.items()):
        colour = canvas.CATEGORIES[number]
        exact = [divergence(form, judgments, float(gap)) for gap in gaps]
        ax.plot(gaps, exact, color=colour, linewidth=1.4, label=label)
        for gap in (0, *GAPS):
            measured = gain(found, seen, gap)
            estimate = paired_difference(measured, dict.fromkeys(measured, 0.0))
            if estimate is not None:
                place = gap + 0.04 * (number - 1.5)
                width = estimate.half_width or 0.0
                ax.errorbar(place, estimate.mean, yerr=width, fmt="o", markersize=4, linewidth=1.4, color=colour)
    ax.set_xlabel("b: how strongly the two halves disagree (0: nobody cares)", fontsize=9, color=canvas.INK)
    ax.set_ylabel("gain of two types over one, nats a judgment", fontsize=9, color=canvas.INK)
    canvas.title(ax, "What tells two opposite types from indifference")
    canvas.legend(ax)
    return canvas.png(figure)
