"""What a finished run shows on the terminal: every metric, in the column of its population."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedalign.report.run_directory import RunDirectory
from fedalign.report.terminal import metrics_table, show_summary


def test_a_row_a_metric_and_a_column_a_population(make_run: Callable[..., Path]) -> None:
    summary = RunDirectory.open(make_run("run")).read_summary()
    measured = {"latent/silhouette": 0.25, "unseen/accuracy": 0.75, "test/accuracy": 0.5}
    table = metrics_table(replace(summary, metrics=measured))
    assert [column.header for column in table.columns] == ["metric", "test", "unseen", "latent"]
    assert [list(column.cells) for column in table.columns] == [
        ["silhouette", "accuracy"], ["", "0.5000"], ["", "0.7500"], ["0.2500", ""],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (None, "privacy: none"),
        ({"epsilon": 3.25, "delta": 1e-5}, "privacy: epsilon 3.25 at delta 1e-05"),
        ({"epsilon": None, "delta": 1e-5}, "privacy: none (no noise)"),
        ({"epsilon": None, "delta": None}, "privacy: secure sums, no differential privacy"),
    ],
)
def test_the_guarantee_is_said_in_a_few_words(
    make_run: Callable[..., Path], guarantee: dict[str, Any], told: dict[str, Any] | None, words: str
) -> None:
    directory = make_run("run", privacy=None if told is None else {**guarantee, **told})
    console = Console(record=True, width=200)
    show_summary(console, directory, replace(RunDirectory.open(directory).read_summary(), metrics={}))
    text = console.export_text()
    assert words in text and "metric" not in text
