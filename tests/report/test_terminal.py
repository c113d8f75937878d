"""What a finished run shows on the terminal: every metric, in the column of its population."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fedalign.report.run_directory import RunDirectory
from fedalign.report.terminal import metrics_table


def test_a_row_a_metric_and_a_column_a_population(make_run: Callable[..., Path]) -> None:
    summary = RunDirectory.open(make_run("run")).read_summary()
    measured = {"latent/silhouette": 0.25, "unseen/accuracy": 0.75, "test/accuracy": 0.5}
    table = metrics_table(replace(summary, metrics=measured))
    assert [column.header for column in table.columns] == ["metric", "test", "unseen", "latent"]
    assert [list(column.cells) for column in table.columns] == [
        ["silhouette", "accuracy"], ["", "0.5000"], ["", "0.7500"], ["0.2500", ""],
    ]  # fmt: skip
