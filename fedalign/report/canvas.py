"""The look of every plot: figure, axes, colours and PNG bytes, without pyplot's global state."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedalign.report.colours import BLUE, CATEGORIES, GRID, INK, MUTED, ORANGE

__all__ = [
    "BLUE", "CATEGORIES", "GRID", "INK", "MUTED", "ORANGE", "category_axis", "legend", "panels", "png", "round_axis",
    "shorten", "title",
]  # fmt: skip

_DPI = 144
_LONGEST = 34


def panels(count: int, *, width: float = 8.0, height: float = 3.8, stacked: bool = False) -> tuple[Figure, list[Axes]]:
    """Return a figure of ``count`` axes side by side, or one above the other, styled; sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    rows, columns = (count, 1) if stacked else (1, count)
    axes = [figure.add_subplot(rows, columns, index + 1) for index in range(count)]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(MUTED)
        ax.tick_params(colors=MUTED, labelcolor=INK, labelsize=9)
        ax.grid(color=GRID, linewidth=0.8)
        ax.set_axisbelow(True)
    return figure, axes


def title(ax: Axes, text: str) -> None:
    """Set the axes' title."""
    ax.set_title(text, loc="left", fontsize=10.5, color=INK, fontweight="bold", parse_math=False)


def round_axis(ax: Axes, starts: Sequence[int]) -> None:
    """Label the x axis as rounds, and mark where a phase after the first begins."""
    ax.set_xlabel("round", fontsize=9, color=INK)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    for start in starts[1:]:
        ax.axvline(start, color=MUTED, linewidth=0.8, linestyle=":")


def category_axis(ax: Axes, names: Sequence[str]) -> None:
    """Write one name a row on the y axis, the first on top; long names are cut."""
    ax.set_yticks(range(len(names)), labels=[shorten(name) for name in names], parse_math=False, fontsize=9)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.grid(visible=False, axis="y")


def legend(ax: Axes) -> None:
    """Draw the axes' legend below the figure, where it hides nothing, when there are things to tell apart."""
    handles, labels = ax.get_legend_handles_labels()
    if len(handles) > 1 and isinstance(ax.figure, Figure):
        look: dict[str, Any] = {"ncols": 2, "frameon": False, "fontsize": 9, "labelcolor": INK}
        drawn = ax.figure.legend(handles, labels, loc="outside lower center", **look)
        for text in drawn.get_texts():
            text.set_parse_math(False)


def shorten(text: str) -> str:
    """Return ``text`` on one line, cut at the length that fits beside a plot."""
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def png(figure: Figure) -> bytes:
    """Draw the figure as PNG."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A group's name may be in a script that the font lacks; the tables have it in full.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()
