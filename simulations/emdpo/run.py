"""Run the experiments on EM-DPO, one process and one thread, and write their results.

python -m simulations.emdpo.run --experiment all|toy,federated,... [--data DIR] [--seeds 0,1] [--arms soft_8,...]
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

from fedalign.run import start
from simulations.emdpo.arms import EXPERIMENTS, Experiment, chosen, overrides
from simulations.emdpo.results import EXTRA, write_results
from simulations.emdpo.score import SCORES

OUTPUT = Path("outputs/simulations/emdpo")


@dataclass(frozen=True)
class Task:
    """One run: its directory, its overrides, and how it is scored afterwards."""

    directory: Path
    overrides: tuple[str, ...]
    scores: tuple[str, ...]


def tasks(
    experiment: Experiment, output: Path, data: str, seeds: list[int] | None = None, arms: list[str] | None = None
) -> list[Task]:
    """Return all runs, seed by seed, so that an interrupted experiment has whole seeds."""
    return [
        Task(
            output / experiment.name / arm.name / f"seed-{seed}",
            (*overrides(arm, data), f"seed={seed}"),
            experiment.scores,
        )
        for seed in experiment.seeds
        if seeds is None or seed in seeds
        for arm in chosen(experiment, arms)
    ]


def execute(task: Task) -> None:
    """Run one task in this process; a finished run is kept, a broken one is replaced."""
    extra = task.directory / EXTRA
    if extra.is_file():
        return
    shutil.rmtree(task.directory, ignore_errors=True)
    start([*task.overrides, f"output='{task.directory}'"])
    found = {name: value for score in task.scores for name, value in SCORES[score](task.directory).items()}
    extra.write_text(json.dumps(found))
    print(task.directory, flush=True)


def main() -> None:
    """Read the arguments, run what is missing, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experiment", default="all", help="names with commas between them, or all")
    parser.add_argument("--data", default="../shared/data", help="folder of the real data")
    parser.add_argument("--seeds", help="numbers with commas between them (default: the experiment's)")
    parser.add_argument("--arms", help="names of arms with commas between them (default: all)")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--results", type=Path, help="where the numbers go (default: the output)")
    given = parser.parse_args()
    logging.getLogger("fedalign").setLevel(logging.ERROR)
    names = list(EXPERIMENTS) if given.experiment == "all" else given.experiment.split(",")
    seeds = None if given.seeds is None else [int(seed) for seed in given.seeds.split(",")]
    arms = None if given.arms is None else given.arms.split(",")
    data = str(Path(given.data).resolve())
    for name in names:
        for task in tasks(EXPERIMENTS[name], given.output, data, seeds, arms):
            execute(task)
    print(write_results(given.output, given.results or given.output))


if __name__ == "__main__":
    main()
