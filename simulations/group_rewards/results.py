"""From the runs of the group-reward experiment to its recorded numbers; with ``--readme`` the tables go there too.

python -m simulations.group_rewards.results [--runs DIR] [--results DIR] [--readme FILE]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from simulations.group_rewards.arms import ARMS
from simulations.group_rewards.record import Results, Scores, SeedResult
from simulations.group_rewards.tables import tables
from simulations.privacy.results import TABLES
from simulations.records import between_marks, finished_runs, to_json


def read_run(directory: Path) -> SeedResult:
    """Return a finished run's numbers."""
    summary = json.loads((directory / "summary.json").read_text())
    metrics, own = summary["metrics"], "test/alignment_score"
    return SeedResult(
        held_out=_scores(metrics, "test"),
        asked=_scores(metrics, "train"),
        unseen=_scores(metrics, "unseen"),
        groups={group: round(values[own], 6) for group, values in summary["groups"].items() if own in values},
        fairness=round(metrics["test/fairness_index"], 6),
        seconds=round(summary["timing"]["total_s"], 1),
    )


def _scores(metrics: Mapping[str, float], population: str) -> Scores:
    names = ("alignment_score", "alignment_score_worst", "reward", "reward_worst", "kl")
    return Scores(*(round(metrics[f"{population}/{name}"], 6) for name in names))


def read_all(output: Path) -> dict[str, dict[int, SeedResult]]:
    """Return the numbers of all finished runs."""
    return finished_runs(output, [arm.name for arm in ARMS], read_run)


def with_tables(readme: str, text: str) -> str:
    """Return the README with the tables between their marks.

    Raises
    ------
    ValueError
        If it has no marks.
    """
    return between_marks(readme, TABLES, text)


def write_results(output: Path, results: Path) -> str:
    """Write ``results.json`` and ``table.md``; return the tables."""
    found: Results = read_all(output)
    results.mkdir(parents=True, exist_ok=True)
    (results / "results.json").write_text(to_json(found))
    text = tables(found)
    (results / "table.md").write_text(text)
    return text


def main() -> None:
    """Read the arguments and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("outputs/simulations/group_rewards"))
    parser.add_argument("--results", type=Path, help="where the numbers go (default: the runs)")
    parser.add_argument("--readme", type=Path, help="a README whose tables are to be replaced")
    given = parser.parse_args()
    text = write_results(given.runs, given.results or given.runs)
    if given.readme is not None:
        given.readme.write_text(with_tables(given.readme.read_text(), text))
    print(text)


if __name__ == "__main__":
    main()
