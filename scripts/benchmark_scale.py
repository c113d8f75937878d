"""Memory and time where many clients take part in a round: each engine in a process of its own, and the bare loop.

Of 10,000 clients 1,000 train a network of a million parameters in every round. Memory is what the server's process
holds at most above what it held before the engine began, so it counts clients too where they run in that process.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedalign.report.atomic import write_json_atomic
from fedalign.report.environment import environment
from scripts.benchmark import ENGINES, put
from scripts.benchmark_task import measure, run_bare, run_engine
from scripts.benchmark_work import NETWORKS, Work

BARE = "bare"
MARKS = ("<!-- scale -->", "<!-- end of scale -->")
_MEGABYTE = 2**20


def resident() -> int:
    """Return the bytes of memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


@contextmanager
def peak() -> Iterator[list[int]]:
    """Yield a list that holds, at the end, the most bytes that this process held above those at the start."""
    found = [0]
    start, over = resident(), threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            found[0] = max(found[0], resident() - start)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        over.set()
        watcher.join()


def measure_here(name: str, work: Work) -> dict[str, Any]:
    """Run the work once in this process."""
    # Reads configurations, and so imports what is no engine's memory.
    work.federation(ENGINES.get(name, ENGINES["in_process"]), Path(), [])
    began = time.perf_counter()
    with peak() as held:
        if name == BARE:
            told = measure(work, run_bare)
        else:
            told = measure(work, lambda task, clock: run_engine(task, clock, ENGINES[name]))
    total = time.perf_counter() - began
    return {"wall_ms": told.wall_ms, "start_s": told.start_s, "total_s": total, "peak_mb": held[0] / _MEGABYTE}


def measure_apart(name: str, work: Work) -> dict[str, Any]:
    """Run the work once in a process of its own."""
    command = [sys.executable, "-m", "scripts.benchmark_scale", "--one", name, work.to_json()]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def to_table(report: Mapping[str, Any]) -> str:
    """Return the report as a Markdown table."""
    lines = [
        "| engine | ms per client-update | to bare | peak of the server above its start, MB | start-up s |",
        "|---|---:|---:|---:|---:|",
    ]
    bare = report["engines"][BARE]["wall_ms"]
    for name, told in report["engines"].items():
        cells = f"{told['wall_ms']:.1f} | {told['wall_ms'] / bare:.2f} | {told['peak_mb']:,.0f} | {told['start_s']:.1f}"
        lines.append(f"| {name} | {cells} |")
    work = report["work"]
    about = f"{work['cohort']:,} of {work['clients']:,} clients a round, {report['parameters']:,} parameters"
    return f"{about}:\n\n" + "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="benchmark_scale", description=__doc__)
    usual = ["in_process", "ray", "ray, 2 workers"]
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=usual, help="beside the bare loop")
    parser.add_argument("--network", choices=list(NETWORKS), default="1M")
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--cohort", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=4, help="rounds; first and last are not timed (default 4)")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write every number")
    parser.add_argument("--page", type=Path, metavar="FILE.md", help="put the table between the page's marks")
    parser.add_argument("--one", nargs=2, metavar=("ENGINE", "WORK"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.one is not None:
        print(json.dumps(measure_here(given.one[0], Work.of(given.one[1]))))
        return 0
    if given.rounds < 4 or not 1 <= given.cohort <= given.clients:
        parser.error("--rounds must be 4 or more, --cohort between 1 and --clients")
    work = Work(given.network, given.clients, given.cohort, given.rounds)
    machine = environment(0)
    report: dict[str, Any] = {
        "work": asdict(work),
        "parameters": work.parameters,
        "machine": {key: machine[key] for key in ("machine", "cpu_count", "python", "versions")},
        "engines": {},
    }
    for name in [BARE, *given.engines]:
        report["engines"][name] = measure_apart(name, work)
        print(name, report["engines"][name], file=sys.stderr, flush=True)
    print(to_table(report))
    if given.out is not None:
        write_json_atomic(given.out, report)
    if given.page is not None:
        put(given.page, to_table(report), MARKS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
