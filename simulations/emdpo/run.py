"""Run the experiments on EM-DPO, one process and one thread, and write their results.

python -m simulations.emdpo.run --experiment all|toy,federated,... [--data DIR] [--seeds 0,1] [--arms soft_8,...]
    [--model DIR] [--finished]
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedalign.run import start
from simulations.emdpo import base
from simulations.emdpo.arms import DATA, EXPERIMENTS, Experiment, chosen, overrides
from simulations.emdpo.language import BASE
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
    experiment: Experiment,
    output: Path,
    folders: Mapping[str, str],
    seeds: list[int] | None = None,
    arms: list[str] | None = None,
) -> list[Task]:
    """Return all runs, seed by seed, so that an interrupted experiment has whole seeds.

    ``folders`` are put into overrides by what stands for them.
    """
    return [
        Task(
            output / experiment.name / arm.name / f"seed-{seed}",
            (*overrides(arm, folders), f"seed={seed}"),
            (*experiment.scores, *arm.scores),
        )
        for seed in experiment.seeds
        if seeds is None or seed in seeds
        for arm in chosen(experiment, arms)
        if not arm.seeds or seed in arm.seeds
    ]


def execute(task: Task) -> None:
    """Run and score one task in this process; a finished run is kept, a broken one is replaced."""
    if scored(task):
        return
    if not finished(task):
        shutil.rmtree(task.directory, ignore_errors=True)
        start([*task.overrides, f"output='{task.directory}'"])
    found = {name: value for score in task.scores for name, value in SCORES[score](task.directory).items()}
    (task.directory / EXTRA).write_text(json.dumps(found))
    print(task.directory, flush=True)


def scored(task: Task) -> bool:
    """Return whether nothing is left to do."""
    return (task.directory / EXTRA).is_file()


def finished(task: Task) -> bool:
    """Return whether the run itself has ended as it should; it may not be scored yet."""
    summary = task.directory / "summary.json"
    return summary.is_file() and json.loads(summary.read_text())["status"] == "completed"


def main() -> None:
    """Read the arguments, run what is missing, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experiment", default="all", help="names with commas between them, or all")
    parser.add_argument("--data", default="../shared/data", help="folder of the real data")
    parser.add_argument("--model", default="../shared/models/tiny-gpt2", help="what the base model is made of")
    parser.add_argument("--finished", action="store_true", help="start no run, and score those that have finished")
    parser.add_argument("--seeds", help="numbers with commas between them (default: the experiment's)")
    parser.add_argument("--arms", help="names of arms with commas between them (default: all)")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--results", type=Path, help="where the numbers go (default: the output)")
    given = parser.parse_args()
    logging.getLogger("fedalign").setLevel(logging.ERROR)
    names = list(EXPERIMENTS) if given.experiment == "all" else given.experiment.split(",")
    seeds = None if given.seeds is None else [int(seed) for seed in given.seeds.split(",")]
    arms = None if given.arms is None else given.arms.split(",")
    model = (given.output / "base").resolve()
    folders = {DATA: str(Path(given.data).resolve()), BASE: str(model)}
    todo = [task for name in names for task in tasks(EXPERIMENTS[name], given.output, folders, seeds, arms)]
    if given.finished:
        todo = [task for task in todo if finished(task)]
    elif any(str(model) in one for task in todo if not scored(task) for one in task.overrides) and not base.made(model):
        base.make(given.model, model)
    for task in todo:
        execute(task)
    print(write_results(given.output, given.results or given.output))


if __name__ == "__main__":
    main()
