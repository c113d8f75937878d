"""Run every arm of the privacy experiment over several seeds, and write the table and the plot.

python -m simulations.privacy.run --data PATH [--seeds 3] [--jobs 1] [--arms network_eps4,...] [--output DIR]
"""

from __future__ import annotations

import argparse
import concurrent.futures
from collections.abc import Sequence
from pathlib import Path

from simulations.pluralllm.run import Task, execute
from simulations.privacy.arms import ARMS, Arm, overrides
from simulations.privacy.results import write_results

OUTPUT = Path("outputs/simulations/privacy")


def tasks(arms: Sequence[Arm], data: str, seeds: int, output: Path) -> list[Task]:
    """Return all runs, seed by seed, so that an interrupted experiment has whole seeds."""
    return [
        Task(output / arm.name / f"seed-{seed}", (*overrides(arm, data), f"seed={seed}"))
        for seed in range(seeds)
        for arm in arms
    ]


def main() -> None:
    """Read the arguments, run what is missing, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="GlobalOpinionQA: the published CSV or a JSON Lines file")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, one thread each")
    parser.add_argument("--arms", help="names of arms, with commas between them (default: all)")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--results", type=Path, help="where the table and the plot go (default: the output)")
    given = parser.parse_args()
    chosen = None if given.arms is None else given.arms.split(",")
    arms = [arm for arm in ARMS if chosen is None or arm.name in chosen]
    todo = tasks(arms, str(Path(given.data).resolve()), given.seeds, given.output)
    # The first run fills the cache of embeddings; the others find it.
    execute(todo[0])
    with concurrent.futures.ThreadPoolExecutor(given.jobs) as pool:
        for finished in concurrent.futures.as_completed([pool.submit(execute, task) for task in todo[1:]]):
            finished.result()
    print(write_results(given.output, given.results or given.output))


if __name__ == "__main__":
    main()
