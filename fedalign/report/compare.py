"""From many run directories to one comparison, written as JSON, Markdown, a plot and a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedalign.errors import UserError
from fedalign.report.arms import Run, group_runs, read_run
from fedalign.report.atomic import write_bytes_atomic, write_json_atomic, write_text_atomic
from fedalign.report.compare_page import compare_page
from fedalign.report.compare_plot import compare_plot
from fedalign.report.compare_tables import to_markdown
from fedalign.report.comparison import Comparison, choose_baseline, choose_metrics
from fedalign.report.run_directory import RunDirectory


def compare(
    dirs: Sequence[Path],
    output: Path | None,
    metrics: Sequence[str] | None = None,
    baseline: str | None = None,
) -> Comparison:
    """Compare runs: one arm for every configuration, mean and 95 % confidence interval over its seeds.

    Parameters
    ----------
    dirs : sequence of Path
        Run directories. Failed and unfinished runs are left out and named in ``skipped``.
    output : Path or None
        Where to write ``compare.json``, ``.md``, ``.png`` and ``.html``; None for nowhere.
    metrics : sequence of str or None
        Names from the runs' summaries; None for all of the unseen groups (or of held-out questions).
    baseline : str or None
        Label of the arm that the others are compared with, seed by seed.

    Raises
    ------
    UserError
        If a directory is no run, no run is complete, or a metric or the baseline is not there.
    """
    runs, skipped = _complete(dirs)
    if not runs:
        reasons = "; ".join(f"{path}: {reason}" for path, reason in skipped) or "no directory was given"
        raise UserError(f"no complete run to compare ({reasons})")
    arms = group_runs(runs)
    counted = {run.directory for arm in arms for run in arm.runs.values()}
    repeated = [
        (run.directory, "a later run has its settings and seed") for run in runs if run.directory not in counted
    ]
    comparison = Comparison(
        arms=tuple(arms),
        metrics=choose_metrics(arms, metrics),
        baseline=choose_baseline(arms, baseline),
        skipped=(*skipped, *repeated),
    )
    if output is not None:
        _write(comparison, output)
    return comparison


def _complete(dirs: Sequence[Path]) -> tuple[list[Run], list[tuple[Path, str]]]:
    """Return the complete runs, and the others with the reason."""
    runs: list[Run] = []
    skipped: list[tuple[Path, str]] = []
    for path in dict.fromkeys(dirs):
        if not RunDirectory.open(path).summary_file.exists():
            skipped.append((path, "the run has not ended"))
            continue
        run = read_run(path)
        if run.summary.status == "failed":
            skipped.append((path, f"the run failed: {run.summary.reason}"))
        else:
            runs.append(run)
    return runs, skipped


def _write(comparison: Comparison, output: Path) -> None:
    plot = compare_plot(comparison)
    write_json_atomic(output / "compare.json", comparison.to_json())
    write_text_atomic(output / "compare.md", to_markdown(comparison))
    write_bytes_atomic(output / "compare.png", plot)
    write_text_atomic(output / "compare.html", compare_page(comparison, plot))
