"""Run every arm of the PluralLLM experiment over several seeds, and write the table and the plot.

python -m simulations.pluralllm.run --data PATH [--seeds 5] [--jobs 2] [--output DIR]
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from simulations.pluralllm.arms import FAIR, FAITHFUL, Arm, overrides
from simulations.pluralllm.results import write_results


@dataclass(frozen=True)
class Task:
    """One run: its directory and its overrides."""

    directory: Path
    overrides: tuple[str, ...]


def tasks(arms: Sequence[Arm], data: str, rounds: int, seeds: int, output: Path) -> list[Task]:
    """Return all runs, seed by seed, so that an interrupted experiment has whole seeds."""
    return [
        Task(
            output / arm.name / f"seed-{seed}" / str(number),
            (*overrides(arm, data, rounds), *member, f"seed={seed}"),
        )
        for seed in range(seeds)
        for arm in arms
        for number, member in enumerate(arm.members)
    ]


def execute(task: Task) -> None:
    """Run one task in a process of its own with one thread; a finished run is kept, a broken one is replaced.

    Raises
    ------
    RuntimeError
        If the run fails.
    """
    if (task.directory / "model" / "model.json").is_file():
        return
    # What an interrupted experiment left half done is done again.
    shutil.rmtree(task.directory, ignore_errors=True)
    command = [sys.executable, "-m", "fedalign.cli", "run", *task.overrides, f"output={task.directory}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{task.directory}: {done.stderr.strip() or done.stdout.strip()}")
    print(task.directory, flush=True)


def main() -> None:
    """Read the arguments, run what is missing, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="GlobalOpinionQA: the published CSV or a JSON Lines file")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one thread each")
    parser.add_argument("--output", type=Path, default=Path("outputs/simulations/pluralllm"))
    parser.add_argument("--results", type=Path, help="where the table and the plot go (default: the output)")
    given = parser.parse_args()
    arms = [*FAIR, *FAITHFUL]
    data = str(Path(given.data).resolve())
    todo = [task for part in (FAIR, FAITHFUL) for task in tasks(part, data, given.rounds, given.seeds, given.output)]
    # The first run fills the cache of embeddings; the others find it.
    execute(todo[0])
    with concurrent.futures.ThreadPoolExecutor(given.jobs) as pool:
        for finished in concurrent.futures.as_completed([pool.submit(execute, task) for task in todo[1:]]):
            finished.result()
    print(write_results(arms, given.output, given.seeds, given.results or given.output))


if __name__ == "__main__":
    main()
