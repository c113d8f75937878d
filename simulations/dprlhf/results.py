"""From the runs of the experiment of private alignment to its numbers; with ``--readme`` the tables go there too.

python -m simulations.dprlhf.results [--runs DIR] [--results DIR] [--readme FILE]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedalign.metrics.record import Metric
from fedalign.report.metrics_log import read_metrics
from simulations.dprlhf.arms import ARMS
from simulations.dprlhf.plots import plot
from simulations.dprlhf.record import Results, SeedResult, Texts
from simulations.dprlhf.tables import tables
from simulations.records import between_marks, finished_runs, to_json

TABLES = ("<!-- tables -->", "<!-- /tables -->")
_TEXTS = {
    "reward": "reward",
    "half_width": "reward_interval",
    "win_rate": "win_rate",
    "kl": "kl",
    "perplexity": "perplexity",
    "distinct_2": "distinct_2",
    "rouge_l": "rougeL",
}
"""Metrics by field."""


def read_run(directory: Path) -> SeedResult:
    """Return a finished run's numbers."""
    summary = json.loads((directory / "summary.json").read_text())
    records = read_metrics(directory / "metrics.jsonl")
    privacy = summary["privacy"] or {}
    multipliers = {phase: _rounded(z) for phase, z in privacy.get("noise_multipliers", {}).items() if z}
    last = {phase: max(r.round for r in records if r.phase == phase) for phase in ("sft", "rl")}
    return SeedResult(
        pretrained=_texts(records, "sft", 0),
        tuned=_texts(records, "sft", last["sft"]),
        aligned=_texts(records, "rl", last["rl"]),
        curve=tuple((r.phase, r.round, _rounded(r.value)) for r in _overall(records) if r.name == "unseen/reward"),
        epsilon=_rounded(privacy["epsilon"]) if multipliers else None,
        delta=privacy["delta"] if multipliers else None,
        epsilons={p: _rounded(e) for p, e in privacy.get("epsilon_by_phase", {}).items() if multipliers},
        noise_multipliers=multipliers,
        seconds=round(summary["timing"]["total_s"], 1),
    )


def _texts(records: Sequence[Metric], phase: str, number: int) -> Texts:
    at = [r for r in _overall(records) if (r.phase, r.round) == (phase, number)]
    found: Mapping[str, float] = {r.name.removeprefix("unseen/"): r.value for r in at}
    return Texts(**{field: _rounded(found[name]) for field, name in _TEXTS.items()})


def _overall(records: Sequence[Metric]) -> list[Metric]:
    return [record for record in records if record.group is None]


def _rounded(value: float) -> float:
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
    (results / "curve.png").write_bytes(plot(found))
    return tables(found)


def main() -> None:
    """Read the arguments and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("outputs/simulations/dprlhf"))
    parser.add_argument("--results", type=Path, help="where the tables and the plot go (default: with the runs)")
    parser.add_argument("--readme", type=Path, help="a README with marks for the tables, to be updated")
    given = parser.parse_args()
    print(write_results(given.runs, given.results or given.runs))
    if given.readme is not None:
        given.readme.write_text(with_tables(given.readme.read_text(), read_all(given.runs)))


if __name__ == "__main__":
    main()
