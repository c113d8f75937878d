"""Run every arm of the group-reward experiment in all worlds, and write the table.

python -m simulations.group_rewards.run --model PATH [--jobs 1] [--arms mean,adaptive] [--output DIR]
"""

from __future__ import annotations

import argparse
import concurrent.futures
from collections.abc import Sequence
from pathlib import Path

from simulations.group_rewards.arms import ARMS, SEEDS, Arm, overrides
from simulations.group_rewards.results import write_results
from simulations.pluralllm.run import Task, execute

OUTPUT = Path("outputs/simulations/group_rewards")


def tasks(arms: Sequence[Arm], model: str, output: Path) -> list[Task]:
    """Return all runs, seed by seed, so that an interrupted experiment has whole seeds."""
    return [
        Task(output / arm.name / f"seed-{seed}", (*overrides(arm, model), f"seed={seed}"))
        for seed in SEEDS
        for arm in arms
    ]


def main() -> None:
    """Read the arguments, run what is missing, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder or hub name of a causal language model")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, one thread each")
    parser.add_argument("--arms", help="names of arms, with commas between them (default: all)")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--results", type=Path, help="where the table goes (default: the output)")
    given = parser.parse_args()
    chosen = None if given.arms is None else given.arms.split(",")
    arms = [arm for arm in ARMS if chosen is None or arm.name in chosen]
    model = str(Path(given.model).resolve()) if Path(given.model).is_dir() else given.model
    with concurrent.futures.ThreadPoolExecutor(given.jobs) as pool:
        todo = [pool.submit(execute, task) for task in tasks(arms, model, given.output)]
        for finished in concurrent.futures.as_completed(todo):
            finished.result()
    print(write_results(given.output, given.results or given.output))


if __name__ == "__main__":
    main()
