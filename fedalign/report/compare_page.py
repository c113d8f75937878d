"""A comparison as a self-contained page."""

from __future__ import annotations

from fedalign.report import html
from fedalign.report.compare_tables import Grid, grids
from fedalign.report.comparison import Comparison
from fedalign.report.numbers import number


def compare_page(comparison: Comparison, plot: bytes) -> str:
    """Return tables, plot, settings, seeds and what was left out as one HTML document."""
    runs = sum(len(arm.runs) for arm in comparison.arms)
    caption = "Mean over seeds with its confidence interval; the small dots below are the single seeds."
    body = [
        html.heading("Comparison", f"{runs} runs in {len(comparison.arms)} arms"),
        *(html.section(grid.title, _table(grid)) for grid in grids(comparison)),
        html.section("Plot", html.figure(plot, caption)),
        html.section("How the arms differ", _settings(comparison)),
        html.section("Every run", _runs(comparison)),
        html.section("Left out", html.table(["run", "why"], [[str(p), why] for p, why in comparison.skipped])),
    ]
    return html.page("fedalign: comparison of runs", "".join(body))


def _table(grid: Grid) -> str:
    return html.table(grid.headers, [[row[0], *(html.Number(text) for text in row[1:])] for row in grid.rows])


def _settings(comparison: Comparison) -> str:
    """Return a row for every key in which the arms differ."""
    keys = list(comparison.arms[0].settings)
    rows = [[key, *(arm.settings[key] for arm in comparison.arms)] for key in keys]
    return html.table(["key", *(arm.label for arm in comparison.arms)], rows)


def _runs(comparison: Comparison) -> str:
    rows: list[list[html.Cell]] = []
    for arm in comparison.arms:
        for seed, run in arm.runs.items():
            found = [run.summary.metrics.get(name) for name in comparison.metrics]
            values = [html.Number("–" if value is None else number(value)) for value in found]
            rows.append([arm.label, html.Number(str(seed)), *values, str(run.directory)])
    return html.table(["arm", "seed", *comparison.metrics, "directory"], rows)
