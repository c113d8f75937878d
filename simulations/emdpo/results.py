"""From the runs on EM-DPO to recorded numbers; with ``--readme`` the tables go there too.

python -m simulations.emdpo.results [--runs DIR] [--results DIR] [--readme FILE]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from simulations.emdpo.arms import EXPERIMENTS
from simulations.emdpo.plots import identifiability_plot
from simulations.emdpo.record import Results, SeedResult, from_json
from simulations.emdpo.tables import tables
from simulations.privacy.results import TABLES
from simulations.records import between_marks, finished_runs, to_json

EXTRA = "scores.json"
"""What a run was scored by afterwards, in its directory; written last."""
KEPT = (
    "test/type_accuracy",
    "test/adjusted_rand",
    "test/calibration_error",
    "test/largest_type_share",
    "test/accuracy",
    "test/margin",
    "test/log_likelihood",
    "test/log_likelihood_chance",
    "train/log_likelihood",
    "train/effective_types",
    "train/collapse_alarms",
    "train/collapse_restarts",
)
"""Metrics that are recorded, where a run has them."""
AT_THE_START = "start/type_accuracy"
"""How many annotators' types the clusters of the start told, where there was such a start."""


def read_run(directory: Path) -> SeedResult:
    """Return a finished run's numbers."""
    summary = json.loads((directory / "summary.json").read_text())
    kept = {name: summary["metrics"][name] for name in KEPT if name in summary["metrics"]}
    kept |= of_the_start(directory)
    extra = directory / EXTRA
    kept |= json.loads(extra.read_text()) if extra.is_file() else {}
    if summary["privacy"] and summary["privacy"]["epsilon"] is not None:
        kept["epsilon"] = summary["privacy"]["epsilon"]
    rounded = {name: round(value, 6) for name, value in kept.items()}
    return SeedResult(rounded, round(summary["timing"]["total_s"], 1))


def of_the_start(directory: Path) -> dict[str, float]:
    """Return how well the clusters of a run's start told types; nothing without such a start."""
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    told = [row for row in map(json.loads, lines) if row["phase"] == "start" and row["name"] == "test/type_accuracy"]
    return {AT_THE_START: told[-1]["value"]} if told else {}


def recorded(results: Path) -> dict[str, dict[str, dict[int, SeedResult]]]:
    """Return the numbers that were recorded before, by experiment."""
    files = {name: results / f"{name}.json" for name in EXPERIMENTS}
    return {name: from_json(file.read_text()) if file.is_file() else {} for name, file in files.items()}


def read_all(output: Path) -> dict[str, dict[str, dict[int, SeedResult]]]:
    """Return the numbers of all finished runs, by experiment."""
    return {
        name: finished_runs(output / name, [arm.name for arm in experiment.arms], read_run)
        for name, experiment in EXPERIMENTS.items()
    }


def merged(before: Results, runs: Results) -> dict[str, dict[int, SeedResult]]:
    """Return recorded numbers and those of finished runs, arm by arm and seed by seed.

    A run takes the place of its record unless that has scores which the run lacks, as before it is scored.
    """
    found = {}
    for arm in dict.fromkeys((*before, *runs)):
        old, new = before.get(arm, {}), runs.get(arm, {})
        fuller = {s: one for s, one in new.items() if s not in old or old[s].scores.keys() <= one.scores.keys()}
        found[arm] = dict(sorted({**old, **fuller}.items()))
    return found


def with_tables(readme: str, text: str) -> str:
    """Return the README with the tables between their marks.

    Raises
    ------
    ValueError
        If it has no marks.
    """
    return between_marks(readme, TABLES, text)


def write_results(output: Path, results: Path) -> str:
    """Write one JSON file an experiment, the tables and the figure; return the tables.

    What was recorded before is kept where there is no run that has all of its scores.
    """
    before = recorded(results)
    found = {name: merged(before[name], own) for name, own in read_all(output).items()}
    results.mkdir(parents=True, exist_ok=True)
    for name, own in found.items():
        (results / f"{name}.json").write_text(to_json(own))
    text = tables(found)
    (results / "table.md").write_text(text)
    (results / "identifiability.png").write_bytes(identifiability_plot(found["identifiability"]))
    return text


def main() -> None:
    """Read the arguments and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("outputs/simulations/emdpo"))
    parser.add_argument("--results", type=Path, help="where the numbers go (default: the runs)")
    parser.add_argument("--readme", type=Path, help="a README whose tables are to be replaced")
    given = parser.parse_args()
    text = write_results(given.runs, given.results or given.runs)
    if given.readme is not None:
        given.readme.write_text(with_tables(given.readme.read_text(), text))
    print(text)


if __name__ == "__main__":
    main()
