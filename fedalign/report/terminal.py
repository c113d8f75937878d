"""What a finished run shows on the terminal: a row a metric, a column a population, and where the report is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fedalign.report.numbers import number
from fedalign.report.summary import Summary

POPULATIONS = ("initial", "train", "test", "unseen")


def show_summary(console: Console, directory: Path, summary: Summary) -> None:
    """Print a run's metrics and the place of its report."""
    if summary.metrics:
        console.print(metrics_table(summary))
    privacy = _privacy(summary.privacy)
    timing = summary.timing
    console.print(
        f"{summary.rounds} rounds, {timing.client_updates} client updates in {timing.total_s:.1f} s; privacy: {privacy}"
    )
    console.print(f"report: {directory / 'report.html'}", soft_wrap=True)


def _privacy(guarantee: Mapping[str, Any] | None) -> str:
    """Say in a few words what is guaranteed."""
    if guarantee is None:
        return "none"
    if guarantee["epsilon"] is not None:
        return f"epsilon {guarantee['epsilon']:.3g} at delta {guarantee['delta']:.2g}"
    return "none (no noise)" if guarantee["delta"] is not None else "secure sums, no differential privacy"


def metrics_table(summary: Summary) -> Table:
    """Return a run's metrics with one column for every population that was measured."""
    return values_table(f"{summary.method} on {summary.data}, seed {summary.seed}", summary.metrics)


def values_table(title: str, metrics: Mapping[str, float]) -> Table:
    """Return metrics with one column for every population that was measured."""
    split: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        population, _, metric = name.partition("/")
        split.setdefault(metric, {})[population] = value
    found = {population for values in split.values() for population in values}
    present = [*(p for p in POPULATIONS if p in found), *sorted(found.difference(POPULATIONS))]
    table = Table(title=title, title_justify="left")
    table.add_column("metric")
    for population in present:
        table.add_column(population, justify="right")
    for metric, values in split.items():
        table.add_row(metric, *(_cell(values, population) for population in present))
    return table


def _cell(values: Mapping[str, float], population: str) -> str:
    return number(values[population]) if population in values else ""
