"""Run every arm of the FedVPA-GP experiment in every setting over several seeds.

python -m simulations.fedvpa.run --hh PATH --llmfao PATH [--settings conflict,...] [--arms full,...] [--seeds 11-15]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from simulations.fedvpa.arms import ARMS, CURVES, SETTINGS, Arm, Setting, arms_of, overrides

OUTPUT = Path("outputs/simulations/fedvpa")


@dataclass(frozen=True)
class Task:
    """One run.

    Parameters
    ----------
    directory : Path
    overrides : tuple of str
    texts : str
        Names the texts that it encodes; tasks with one name share them.
    """

    directory: Path
    overrides: tuple[str, ...]
    texts: str


def place(output: Path, setting: str, arm: str, seed: int) -> Path:
    """Return the directory of a run."""
    return output / setting / arm / f"seed-{seed}"


def curve_place(output: Path, setting: str, arm: str) -> Path:
    """Return the directory of the run that is evaluated every few rounds."""
    return output / setting / arm / "curve"


def tasks(
    settings: Sequence[Setting],
    names: Sequence[str],
    seeds: Sequence[int],
    paths: Mapping[str, str],
    output: Path,
) -> list[Task]:
    """Return all runs, setting by setting and seed by seed, so that neighbours share their data.

    Parameters
    ----------
    settings : sequence of Setting
    names : sequence of str
        Arms; those that make no sense in a setting are left out there.
    seeds : sequence of int
    paths : mapping from setting name to the path of its data
    output : Path
    """
    found = []
    for setting in settings:
        path = paths.get(setting.name)
        chosen = [arm for arm in arms_of(setting) if arm.name in names]
        for seed in seeds:
            for arm in chosen:
                found.append(_task(setting, arm, seed, path, place(output, setting.name, arm.name, seed)))
        if setting == SETTINGS[0]:
            for arm in (arm for arm in chosen if arm.name in CURVES):
                watched = _task(setting, arm, seeds[0], path, curve_place(output, setting.name, arm.name))
                more = tuple(o for o in watched.overrides if not o.startswith("federation.evaluate_every="))
                found.append(Task(watched.directory, (*more, "federation.evaluate_every=5"), watched.texts))
    return found


def _task(setting: Setting, arm: Arm, seed: int, path: str | None, directory: Path) -> Task:
    texts = setting.family.partition("_")[0] + (f"-{seed}" if setting.own_texts else "")
    return Task(directory, (*overrides(setting, arm, path), f"seed={seed}"), texts)


def finished(directory: Path) -> bool:
    """Say whether a run came to its end."""
    try:
        return bool(json.loads((directory / "summary.json").read_text())["status"] == "completed")
    except (OSError, ValueError, KeyError):
        return False


def execute(task: Task) -> float:
    """Run one task in this process and return its seconds; a broken or failed run is replaced."""
    from fedalign.run import start

    began = time.perf_counter()
    shutil.rmtree(task.directory, ignore_errors=True)
    # Several runs at once would draw their progress over each other.
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        start([*task.overrides, f"output='{task.directory}'"])
    return time.perf_counter() - began


def run_all(todo: Sequence[Task], jobs: int) -> list[str]:
    """Run tasks in that many processes, and return what failed; the other runs go on."""
    failures: list[str] = []
    # New processes read this when they load PyTorch.
    os.environ["OMP_NUM_THREADS"] = "1"
    done = 0
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        # One run for each set of texts fills the cache of embeddings; the others find it.
        for wave in _waves(todo):
            futures = {pool.submit(execute, task): task for task in wave}
            try:
                for future in as_completed(futures):
                    task, error = futures[future], future.exception()
                    done += 1
                    outcome = f"{future.result():.0f} s" if error is None else f"{type(error).__name__}: {error}"
                    failures += [] if error is None else [f"{task.directory}: {outcome}"]
                    print(f"[{done}/{len(todo)}] {task.directory}: {outcome}", flush=True)
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return failures


def _waves(todo: Iterable[Task]) -> tuple[list[Task], list[Task]]:
    """Return the first task of each set of texts, and the others."""
    seen: set[str] = set()
    first: list[Task] = []
    rest: list[Task] = []
    for task in todo:
        (rest if task.texts in seen else first).append(task)
        seen.add(task.texts)
    return first, rest


def seeds_of(text: str) -> list[int]:
    """Return the seeds that ``11-15`` or ``1,2,5`` stands for."""
    found: list[int] = []
    for part in text.split(","):
        low, _, high = part.partition("-")
        found += range(int(low), int(high or low) + 1)
    return found


def chosen(text: str | None, known: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    """Return the names in a comma-separated list, all if there is none."""
    names = list(known) if text is None else text.split(",")
    unknown = [name for name in names if name not in known]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    return names


def main() -> None:
    """Read the arguments and run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", help="separated by commas; all by default")
    parser.add_argument("--arms", help="separated by commas; all by default")
    parser.add_argument("--seeds", default="11-15", help="as 11-15 or 11,12")
    parser.add_argument("--jobs", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--hh", type=Path, help="HH-RLHF: a folder as published, or one file of pairs")
    parser.add_argument("--llmfao", type=Path, help="LLMFAO: the folder with comparisons and responses")
    given = parser.parse_args()
    names = chosen(given.settings, [setting.name for setting in SETTINGS], parser)
    settings = [setting for setting in SETTINGS if setting.name in names]
    sources = {"hh_rlhf": given.hh, "llmfao": given.llmfao}
    paths = {}
    for setting in settings:
        source = setting.overrides[0].removeprefix("data=")
        if source in sources:
            if sources[source] is None:
                parser.error(f"{setting.name} needs --{setting.name.partition('_')[0]}")
            paths[setting.name] = str(sources[source].resolve())
    arms = chosen(given.arms, [arm.name for arm in ARMS], parser)
    planned = tasks(settings, arms, seeds_of(given.seeds), paths, given.output.resolve())
    todo = [task for task in planned if not finished(task.directory)]
    print(f"{len(planned) - len(todo)} of {len(planned)} runs are done", flush=True)
    failures = run_all(todo, given.jobs)
    if failures:
        raise SystemExit("\n".join(["failed:", *failures]))


if __name__ == "__main__":
    main()
