"""Cost of a secure sum beside the plain one: bytes per client, and seconds of the clients and of the server.

Every party and the coordinator run one after the other in this process; nothing travels, bytes are counted.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedalign.federation.secure.coordinator import Coordinator
from fedalign.federation.secure.fixed_point import Words
from fedalign.federation.secure.party import Party
from fedalign.federation.secure.settings import SecAgg
from fedalign.report.atomic import write_json_atomic, write_text_atomic
from fedalign.report.environment import environment

PLAIN_BYTES = 4  # a float32 parameter, which is what a client sends without secure aggregation


@dataclass(frozen=True)
class Work:
    """One row of the table.

    Parameters
    ----------
    clients, length : int
        Parties, and values of a vector.
    dropouts : float
        Share of the clients that are lost after they shared their secrets, the most expensive moment.
    """

    clients: int
    length: int
    dropouts: float


@dataclass
class Cost:
    """What one round cost: bytes by client, seconds of all clients together, of the server and of the plain sum."""

    up: dict[str, int] = field(default_factory=dict)
    down: dict[str, int] = field(default_factory=dict)
    client_s: float = 0.0
    server_s: float = 0.0
    plain_s: float = 0.0
    stages_s: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def client(self) -> Iterator[None]:
        """Count the time of a block as a client's."""
        began = time.perf_counter()
        yield
        self.client_s += time.perf_counter() - began

    @contextmanager
    def server(self, stage: str) -> Iterator[None]:
        """Count the time of a block as the server's."""
        began = time.perf_counter()
        yield
        took = time.perf_counter() - began
        self.server_s += took
        self.stages_s[stage] = self.stages_s.get(stage, 0.0) + took


def size(message: Any) -> int:
    """Return the bytes of the keys, names, shares and words in a message, without the framing of a transport."""
    if isinstance(message, bytes):
        return len(message)
    if isinstance(message, str):
        return len(message.encode())
    if isinstance(message, np.ndarray):
        return message.nbytes
    if isinstance(message, dict):
        return sum(size(key) + size(value) for key, value in message.items())
    if isinstance(message, list | tuple):
        return sum(size(value) for value in message)
    return size(message.to_dict())


def measure(work: Work, settings: SecAgg, seed: int) -> Cost:
    """Run one round, check its sum, and return its cost.

    Raises
    ------
    RuntimeError
        If the sum is not the plain sum to the quantisation error.
    """
    names = [f"client-{place}" for place in range(work.clients)]
    generator = np.random.default_rng(seed)
    # One vector for everyone: what is summed does not matter for the cost, and 100 large ones would not fit.
    values = generator.normal(scale=0.01, size=work.length).astype(np.float32)
    lost = set(names[: int(work.dropouts * work.clients)])
    cost, code = Cost(), settings.codec(work.clients)
    parties = {name: Party.create(name, "benchmark", settings) for name in names}
    with cost.server("keys"):
        coordinator = Coordinator("benchmark", names, settings, work.length)
    _ask(cost, "keys", dict.fromkeys(names, ()), lambda name: parties[name].advertise(), coordinator.receive_keys)
    with cost.server("keys"):
        neighbourhoods = coordinator.neighbourhoods()

    def shared(name: str) -> dict[str, bytes]:
        return parties[name].share(neighbourhoods[name])

    _ask(cost, "shares", neighbourhoods, shared, coordinator.receive_shares)
    with cost.server("shares"):
        inboxes = coordinator.inboxes()

    def masked(name: str) -> Words:
        return parties[name].mask(inboxes[name], code.encode(values))

    left = {name: inbox for name, inbox in inboxes.items() if name not in lost}
    _ask(cost, "masked", left, masked, coordinator.receive_masked)
    with cost.server("unmask"):
        requests = coordinator.unmask_requests()
    _ask(cost, "unmask", requests, lambda name: parties[name].unmask(requests[name]), coordinator.receive_unmask)
    with cost.server("unmask"):
        total = code.decode(coordinator.result())
    cost.plain_s, plain = _plain_sum(values, len(left))
    if np.abs(total - plain).max() > code.quantisation_error(len(left)) + 1e-9:
        raise RuntimeError(f"the secure sum of {work} is not the plain sum")
    return cost


def _ask(
    cost: Cost, stage: str, requests: dict[str, Any], answer: Callable[[str], Any], receive: Callable[[str, Any], None]
) -> None:
    for name, request in requests.items():
        with cost.client():
            reply = answer(name)
        cost.down[name] = cost.down.get(name, 0) + size(request)
        cost.up[name] = cost.up.get(name, 0) + size(reply)
        with cost.server(stage):
            receive(name, reply)


def _plain_sum(values: np.ndarray[Any, Any], clients: int) -> tuple[float, np.ndarray[Any, Any]]:
    began = time.perf_counter()
    total = np.zeros(len(values))
    for _ in range(clients):
        total += values
    return time.perf_counter() - began, total


def to_row(work: Work, costs: Sequence[Cost]) -> dict[str, Any]:
    """Return a row of the table as plain data: medians over repeats; bytes are those of a client that stays."""
    plain = PLAIN_BYTES * work.length
    up, down = (statistics.median(max(getattr(cost, way).values()) for cost in costs) for way in ("up", "down"))
    return {
        **asdict(work),
        "up_bytes": up,
        "down_bytes": down,
        "up_to_plain": up / plain,
        "client_s": statistics.median(cost.client_s for cost in costs) / work.clients,
        "server_s": statistics.median(cost.server_s for cost in costs),
        "unmask_s": statistics.median(cost.stages_s["unmask"] for cost in costs),
        "plain_s": statistics.median(cost.plain_s for cost in costs),
    }


def to_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows as a Markdown table."""
    lines = [
        "| clients | values | dropped | up KB/client | to plain | down KB/client | client s | server s "
        "| of that unmasking | plain sum s |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        cells = [
            f"{row['clients']}",
            f"{row['length']:,}",
            f"{row['dropouts']:.0%}",
            f"{row['up_bytes'] / 1e3:,.1f}",
            f"{row['up_to_plain']:.2f}",
            f"{row['down_bytes'] / 1e3:,.1f}",
            f"{row['client_s']:.4f}",
            f"{row['server_s']:.3f}",
            f"{row['unmask_s']:.3f}",
            f"{row['plain_s']:.4f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and print its table."""
    given = _parse(arguments)
    settings = SecAgg(given.bits, given.fraction_bits, given.neighbours, given.threshold, 2)
    rows = []
    for length in given.values:
        for clients in given.clients:
            work = Work(clients, length, given.dropouts)
            rows.append(to_row(work, [measure(work, settings, given.seed + repeat) for repeat in range(given.repeats)]))
            print(f"{clients} clients, {length} values: done", file=sys.stderr, flush=True)
    table = to_table(rows)
    print(table, end="")
    if given.out is not None:
        machine = environment(given.seed)
        kept = {key: machine[key] for key in ("machine", "cpu_count", "python", "versions")}
        write_json_atomic(given.out.with_suffix(".json"), {"settings": asdict(settings), "machine": kept, "rows": rows})
        write_text_atomic(given.out.with_suffix(".md"), table)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmark_secure_sum", description="Measure a secure sum and the plain one.")
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 50, 100])
    parser.add_argument("--values", type=int, nargs="+", default=[1_000, 30_000, 1_000_000], help="length of a vector")
    parser.add_argument("--dropouts", type=float, default=0.1, help="share lost after stage 2 (default 0.1)")
    parser.add_argument("--bits", type=int, choices=[32, 64], default=64)
    parser.add_argument("--fraction-bits", type=int, default=32)
    parser.add_argument("--neighbours", type=int, default=20, help="of a party, even (default 20)")
    parser.add_argument("--threshold", type=float, default=0.6, help="share of a neighbourhood (default 0.6)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write every number, and the table as FILE.md")
    given = parser.parse_args(arguments)
    if min(given.clients) < 3 or given.repeats < 1 or not 0 <= given.dropouts < 0.4:
        parser.error("--clients must be 3 or more, --repeats 1 or more, --dropouts in [0, 0.4)")
    if given.neighbours < 2 or given.neighbours % 2 or not 0.5 < given.threshold <= 1:
        parser.error("--neighbours must be even, --threshold in (0.5, 1]")
    return given


if __name__ == "__main__":
    sys.exit(main())
