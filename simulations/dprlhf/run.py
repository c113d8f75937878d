"""Run every arm of the experiment of private alignment over several seeds, and write the tables and the plot.

python -m simulations.dprlhf.run --model PATH --data PATH [--seeds 3] [--arms eps4,none] [--jobs 2] [--output DIR]
"""

from __future__ import annotations

import argparse
import concurrent.futures
from collections.abc import Sequence
from pathlib import Path

from simulations.dprlhf.arms import ARMS, MAIN, SECONDARY, Arm, overrides
from simulations.dprlhf.results import write_results
from simulations.pluralllm.run import Task, execute

OUTPUT = Path("outputs/simulations/dprlhf")


def tasks(arms: Sequence[Arm], model: str, data: str, seeds: Sequence[int], output: Path) -> list[Task]:
    """Return all runs: the first table's first, seed by seed, so that an interrupted experiment has whole seeds."""
    return [
        Task(output / arm.name / f"seed-{seed}", (*overrides(arm, model, data), f"seed={seed}"))
        for table in (MAIN, SECONDARY)
        for seed in seeds
        for arm in table
        if arm in arms
    ]


def main() -> None:
    """Read the arguments, run what is missing, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder or hub name of a causal language model")
    parser.add_argument("--data", required=True, help="folder with IMDb's train.jsonl.gz and test.jsonl.gz")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 on")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, one thread each")
    parser.add_argument("--arms", help="names of arms, with commas between them (default: all)")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--results", type=Path, help="where the tables and the plot go (default: the output)")
    given = parser.parse_args()
    model = str(Path(given.model).resolve()) if Path(given.model).is_dir() else given.model
    arms = _chosen(given.arms)
    todo = tasks(arms, model, str(Path(given.data).resolve()), range(given.seeds), given.output)
    with concurrent.futures.ThreadPoolExecutor(given.jobs) as pool:
        for finished in concurrent.futures.as_completed([pool.submit(execute, task) for task in todo]):
            finished.result()
    print(write_results(given.output, given.results or given.output))


def _chosen(names: str | None) -> list[Arm]:
    if names is None:
        return list(ARMS)
    known = {arm.name: arm for arm in ARMS}
    unknown = [name for name in names.split(",") if name not in known]
    if unknown:
        raise SystemExit(f"--arms: no arm {', '.join(unknown)}; known: {', '.join(known)}")
    return [known[name] for name in names.split(",")]


if __name__ == "__main__":
    main()
