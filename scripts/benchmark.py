"""Time per client-update of the same work in a bare PyTorch loop, on every engine, and in pfl where it is installed.

The bare loop is what one would write by hand: it knows the network, the loss, the data and the random streams, and
nothing of federations, messages or engines. All must end with its weights, or the script fails. Repeats are
interleaved, and a ratio is to the bare loop of the same repeat.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedalign.contribution import State
from fedalign.errors import UserError
from fedalign.report.atomic import write_json_atomic, write_text_atomic
from fedalign.report.environment import environment
from scripts import benchmark_pfl
from scripts.benchmark_clock import Stopwatch
from scripts.benchmark_survey import Survey
from scripts.benchmark_task import Measurement, Task, difference, measure, run_bare, run_engine
from scripts.benchmark_work import NETWORKS, Work

Run = Callable[[Task, Stopwatch], State]

BARE, PFL = "bare", "pfl"
ENGINES: Mapping[str, Sequence[str]] = {
    "in_process": ["engine=in_process"],
    "vectorised": ["engine=vectorised"],
    "ray": ["engine=ray", "engine.workers=1"],
    "ray, 2 workers": ["engine=ray", "engine.workers=2"],
    "flower": ["engine=flower", "engine.workers=1"],
    "flower, 2 workers": ["engine=flower", "engine.workers=2"],
}
SURVEYS = ("gpo", "gpo_small")
TOLERANCE = 1e-5
MARKS = ("<!-- engines -->", "<!-- end of engines -->")


def contenders(task: Task, names: Sequence[str]) -> dict[str, Run]:
    """Return what is compared, by name, the bare loop first; pfl where it is there and can do the work."""
    runs: dict[str, Run] = {BARE: run_bare}
    for name in names:
        if name != PFL:
            runs[name] = functools.partial(run_engine, engine=ENGINES[name])
        elif benchmark_pfl.installed() and isinstance(task, Work):
            runs[name] = benchmark_pfl.run
    return runs


def repeat(task: Task, runs: Mapping[str, Run], repeats: int) -> dict[str, list[Measurement]]:
    """Run everything in every repeat, each time in another order, so that a slow spell of the machine hits all."""
    measured: dict[str, list[Measurement]] = {name: [] for name in runs}
    order = list(runs)
    # Who comes first would pay for what PyTorch sets up once.
    measure(task, runs[BARE])
    for number in range(repeats):
        turn = number % len(order)
        for name in [*order[turn:], *order[:turn]]:
            measured[name].append(measure(task, runs[name]))
            told = f"{task.name:<12} repeat {number + 1}/{repeats}  {name:<18} {measured[name][-1].wall_ms:8.3f} ms"
            print(told, file=sys.stderr, flush=True)
    return measured


def to_report(task: Task, measured: Mapping[str, Sequence[Measurement]]) -> dict[str, Any]:
    """Return every number of a comparison as plain data."""
    engines: dict[str, Any] = {}
    for name, runs in measured.items():
        pairs = list(zip(runs, measured[BARE], strict=True))
        # Work that other processes do is not in this one's CPU time.
        here = name.partition(",")[0] not in ("ray", "flower")
        engines[name] = {
            "wall_ms": [run.wall_ms for run in runs],
            "wall_ratio": [run.wall_ms / bare.wall_ms for run, bare in pairs],
            "cpu_ratio": [run.cpu_ms / bare.cpu_ms for run, bare in pairs] if here else None,
            "overhead_ms": [run.wall_ms - bare.wall_ms for run, bare in pairs],
            "start_s": [run.start_s for run in runs],
            "max_difference": max(difference(run.weights, bare.weights) for run, bare in pairs),
        }
    machine = environment(0)
    return {
        "work": asdict(task),  # type: ignore[call-overload]
        "parameters": task.parameters,
        "machine": {key: machine[key] for key in ("machine", "cpu_count", "python", "versions")},
        "engines": engines,
    }


def to_table(report: Mapping[str, Any]) -> str:
    """Return the report's medians over repeats as a Markdown table."""
    lines = [
        "| engine | ms per client-update | to bare | CPU to bare | added ms | start-up s | weights differ by |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, numbers in report["engines"].items():
        columns = (("wall_ms", 2), ("wall_ratio", 2), ("cpu_ratio", 2), ("overhead_ms", 2), ("start_s", 1))
        cells = [_median(numbers[key], digits) for key, digits in columns]
        lines.append(f"| {' | '.join([name, *cells])} | {numbers['max_difference']:.0e} |")
    return "\n".join(lines) + "\n"


def _median(values: Sequence[float] | None, digits: int) -> str:
    return "" if values is None else f"{statistics.median(values):.{digits}f}"


def to_page(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """Return all tables, one a piece of work, under lines that say what it is."""
    parts = []
    for name, report in reports.items():
        rounds, repeats = report["work"]["rounds"], len(report["engines"][BARE]["wall_ms"])
        about = f"{report['parameters']:,} parameters, {rounds} rounds, {repeats} repeats"
        parts.append(f"**{name}**: {about}\n\n{to_table(report)}")
    versions = next(iter(reports.values()))["machine"]
    torch, flower = versions["versions"]["torch"], versions["versions"]["flwr"]
    told = (
        f"Recorded on {versions['cpu_count']} cores with Python {versions['python']}, PyTorch {torch}, flwr {flower}."
    )
    return "\n".join(parts) + f"\n{told}\n"


def apart(name: str, report: Mapping[str, Any]) -> list[str]:
    """Return the engines that did not end with the bare loop's weights, though they should have.

    Survey networks have biases that a softmax cancels: Adam makes steps of full size out of the rounding in their
    gradients, which is another in a stack. Nothing that is predicted depends on them, as the laws say.
    """
    told = report["engines"].items()
    wrong = [engine for engine, numbers in told if not numbers["max_difference"] <= TOLERANCE]
    return [engine for engine in wrong if not (name in SURVEYS and engine == "vectorised")]


def put(page: Path, content: str, marks: tuple[str, str] = MARKS) -> None:
    """Replace what stands between two marks of a page.

    Raises
    ------
    UserError
        If the page has no such place.
    """
    text = page.read_text(encoding="utf-8")
    before, found, rest = text.partition(marks[0])
    _, ended, after = rest.partition(marks[1])
    if not (found and ended):
        raise UserError(f"{page}: has no place between {marks[0]} and {marks[1]}")
    write_text_atomic(page, f"{before}{marks[0]}\n\n{content}\n{marks[1]}{after}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 if somebody's final weights are not the bare loop's, 2 for a user's mistake."""
    given = _parse(arguments)
    reports: dict[str, Any] = {}
    wrong = []
    try:
        for name in given.work:
            task = _task(name, given)
            report = to_report(task, repeat(task, contenders(task, given.engines), given.repeats))
            reports[name] = report
            print(f"{name}, {report['parameters']:,} parameters\n{to_table(report)}")
            wrong += [f"{name} on {engine}" for engine in apart(name, report)]
        if given.out is not None:
            write_json_atomic(given.out, reports)
        if given.page is not None:
            put(given.page, to_page(reports))
    except UserError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 2
    if wrong:
        print(f"benchmark: not the bare loop's weights within {TOLERANCE}: {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


def _task(name: str, given: argparse.Namespace) -> Task:
    """Return a piece of work; a few rounds of a survey network take about as long as many of a classifier."""
    if name in SURVEYS:
        return Survey(name, rounds=max(4, given.rounds // 4), threads=given.threads)
    return Work(name, rounds=given.rounds, threads=given.threads)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmark", description="Time a bare PyTorch loop and the engines.")
    works, every = [*NETWORKS, *SURVEYS], [*ENGINES, PFL]
    usual = [name for name in works if name != "1M"]
    parser.add_argument("--work", nargs="+", choices=works, default=usual, help="default: all but 1M")
    parser.add_argument("--engines", nargs="+", choices=every, default=every, help="beside the bare loop")
    parser.add_argument("--rounds", type=int, default=20, help="rounds; first and last are not timed (default 20)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each, interleaved (default 3)")
    parser.add_argument("--threads", type=int, default=1, help="PyTorch threads (default 1)")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write every number")
    parser.add_argument("--page", type=Path, metavar="FILE.md", help="put the tables between the page's marks")
    given = parser.parse_args(arguments)
    if given.rounds < 4 or given.repeats < 1 or given.threads < 1:
        parser.error("--rounds must be 4 or more, --repeats and --threads 1 or more")
    return given


if __name__ == "__main__":
    sys.exit(main())
