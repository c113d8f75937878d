"""A comparison as tables: rich on a terminal, plain text elsewhere, Markdown in a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedalign.report.comparison import Comparison
from fedalign.report.numbers import decimals, number
from fedalign.report.statistics import LEVEL, Estimate


@dataclass(frozen=True)
class Grid:
    """A table before it has a form; the first column is text, the others are numbers.

    Parameters
    ----------
    title : str
    headers : tuple of str
    rows : tuple of tuple of str
    """

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def grids(comparison: Comparison) -> list[Grid]:
    """Return the table of means and, with a baseline, the table of differences from it."""
    percent = f"{LEVEL:.0%}".replace("%", " %")
    headers = ("arm", "seeds", *comparison.metrics)
    means = tuple(
        (
            arm.label,
            str(len(arm.runs)),
            *(cell(comparison.estimate(arm, name)) for name in comparison.metrics),
        )
        for arm in comparison.arms
    )
    found = [Grid(f"Mean over seeds ± half of the {percent} confidence interval", headers, means)]
    if comparison.baseline is not None:
        differences = tuple(
            (
                arm.label,
                str(len(set(arm.runs) & set(comparison.baseline.runs))),
                *(cell(comparison.difference(arm, name), signed=True) for name in comparison.metrics),
            )
            for arm in comparison.arms
            if arm is not comparison.baseline
        )
        title = f"Difference from {comparison.baseline.label}, paired by seed ± half of the {percent} interval"
        found.append(Grid(title, headers, differences))
    return found


def cell(estimate: Estimate | None, signed: bool = False) -> str:
    """Return ``mean ± half width``; the mean alone for one seed, a dash for none."""
    if estimate is None:
        return "–"
    sign = "+" if signed and estimate.mean > 0 else ""
    if estimate.half_width is None:
        return sign + number(estimate.mean)
    digits = decimals(estimate.mean, estimate.half_width)
    return f"{sign}{estimate.mean:,.{digits}f} ± {estimate.half_width:,.{digits}f}"


def to_text(comparison: Comparison) -> str:
    """Return the tables in aligned columns, one line a row however long, for pipes and log files."""
    parts = [_aligned(grid) for grid in grids(comparison)]
    skipped = "".join(f"left out: {path}: {reason}\n" for path, reason in comparison.skipped)
    return "\n".join([*parts, skipped] if skipped else parts)


def to_markdown(comparison: Comparison) -> str:
    """Return the tables in Markdown."""
    return "\n".join(_markdown(grid) for grid in grids(comparison))


def show(comparison: Comparison, console: Console) -> None:
    """Print the tables, drawn with rich on a terminal and as plain text elsewhere."""
    if not console.is_terminal:
        console.file.write(to_text(comparison))
        return
    for grid in grids(comparison):
        console.print(_rich(grid))
    for path, reason in comparison.skipped:
        console.print(Text(f"left out: {path}: {reason}", style="yellow"))


def _rich(grid: Grid) -> Table:
    table = Table(title=Text(grid.title, style="bold"), title_justify="left")
    for index, header in enumerate(grid.headers):
        # A population above its metric's name keeps columns narrow.
        heading = Text(header.replace("/", "/\n", 1))
        table.add_column(heading, justify="right" if index else "left", overflow="fold")
    for row in grid.rows:
        table.add_row(*(Text(text) for text in row))
    return table


def _aligned(grid: Grid) -> str:
    lines: Sequence[Sequence[str]] = [grid.headers, *grid.rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(grid.headers))]
    drawn = [
        "  ".join(t.rjust(w) if column else t.ljust(w) for column, (t, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    ]
    return "\n".join([grid.title, *(line.rstrip() for line in drawn)]) + "\n"


def _markdown(grid: Grid) -> str:
    lines = [grid.headers, ("---", *("---:" for _ in grid.headers[1:])), *grid.rows]
    drawn = ["| " + " | ".join(text.replace("|", "\\|").replace("\n", " ") for text in line) + " |" for line in lines]
    return f"**{grid.title}**\n\n" + "\n".join(drawn) + "\n"
