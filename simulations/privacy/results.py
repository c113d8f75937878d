"""From the runs of the privacy experiment to its recorded numbers; with ``--readme`` the tables go there too.

python -m simulations.privacy.results [--runs DIR] [--results DIR] [--readme FILE]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from fedalign.metrics.record import Metric
from fedalign.report.metrics_log import read_metrics
from simulations.privacy.arms import ARMS
from simulations.privacy.plots import curve_plot
from simulations.privacy.record import Results, SeedResult
from simulations.privacy.score import SCORE, unseen_scores
from simulations.privacy.tables import tables
from simulations.records import between_marks, finished_runs, to_json

TABLES = ("<!-- tables -->", "<!-- /tables -->")


def read_run(directory: Path) -> SeedResult:
    """Return a finished run's numbers; where its metrics were withheld, its model is scored now."""
    summary = json.loads((directory / "summary.json").read_text())
    records = read_metrics(directory / "metrics.jsonl")
    groups = {group: values[SCORE] for group, values in summary["groups"].items() if SCORE in values}
    groups = groups or unseen_scores(directory)
    before = [r.value for r in records if r.name == SCORE and r.group is None and r.round == 0]
    privacy = summary["privacy"] or {}
    return SeedResult(
        score=_rounded(np.mean(list(groups.values()))),
        worst=_rounded(min(groups.values())),
        untrained=_rounded(before[-1]) if before else None,
        groups={group: _rounded(value) for group, value in groups.items()},
        epsilon=_known(privacy.get("epsilon")),
        noise_multiplier=_known(privacy.get("noise_multiplier")),
        clients=_rounded(np.mean(_cohorts(records) or [0.0])),
        seconds=round(summary["timing"]["total_s"], 1),
    )


def _cohorts(records: list[Metric]) -> list[float]:
    cohorts = [(record.phase, record.value) for record in records if record.name == "cohort"]
    return [value for phase, value in cohorts if phase == cohorts[-1][0]]


def _known(value: float | None) -> float | None:
    """Return a number of a guarantee; None where there is no noise."""
    return None if not value else _rounded(value)


def _rounded(value: float | np.floating) -> float:
    return round(float(value), 6)


def read_all(output: Path) -> dict[str, dict[int, SeedResult]]:
    """Return the numbers of all finished runs."""
    return finished_runs(output, [arm.name for arm in ARMS], read_run)


def with_tables(readme: str, found: Results) -> str:
    """Return the README with the tables between their marks.

    Raises
    ------
    ValueError
        If it has no marks.
    """
    return between_marks(readme, TABLES, tables(found))


def write_results(output: Path, results: Path) -> str:
    """Write ``results.json``, ``table.md`` and ``curve.png`` of what is finished, and return the tables."""
    found = read_all(output)
    results.mkdir(parents=True, exist_ok=True)
    (results / "results.json").write_text(to_json(found))
    (results / "table.md").write_text(tables(found))
    (results / "curve.png").write_bytes(curve_plot(found))
    return tables(found)


def main() -> None:
    """Read the arguments and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("outputs/simulations/privacy"))
    parser.add_argument("--results", type=Path, help="where the table and the plot go (default: with the runs)")
    parser.add_argument("--readme", type=Path, help="a README whose tables are replaced")
    given = parser.parse_args()
    print(write_results(given.runs, given.results or given.runs))
    if given.readme is not None:
        given.readme.write_text(with_tables(given.readme.read_text(), read_all(given.runs)))


if __name__ == "__main__":
    main()
