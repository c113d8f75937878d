"""Where the time of a run went, in one table: what the server's process did, and what clients did, over all workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

SERVER: Mapping[str, str] = {
    "data and start-up": "start_s",
    "waiting for clients": "wait_s",
    "serialisation": "codec_s",
    "aggregation": "sum_s",
    "waiting for evaluations": "evaluate_s",
    "checkpoints and reports": "save_s",
}
"""Parts of the server's time, by the names of their counters; they do not overlap."""

CLIENTS: Mapping[str, str] = {
    "data": "client_data_s",
    "forward and backward passes": "update_s",
    "evaluation": "client_evaluate_s",
    "serialisation": "client_codec_s",
}
"""Parts of the clients' time, summed over clients."""


@dataclass(frozen=True)
class Part:
    """A line of the table.

    Parameters
    ----------
    who : {"server", "clients"}
    what : str
    seconds : float
    share : float
        Of all seconds of those who spent them.
    """

    who: str
    what: str
    seconds: float
    share: float


def parts(counters: Mapping[str, float], total: float) -> list[Part]:
    """Return the lines of a run's profile.

    Parameters
    ----------
    counters : mapping from name to seconds
        Of the run; see `SERVER` and `CLIENTS`.
    total : float
        Wall time of the run in seconds; what no counter tells is told as other.
    """
    server = {what: counters.get(name, 0.0) for what, name in SERVER.items()}
    server["other"] = max(0.0, total - sum(server.values()))
    clients = {what: counters.get(name, 0.0) for what, name in CLIENTS.items()}
    return [*_lines("server", server), *_lines("clients", clients)]


def _lines(who: str, seconds: Mapping[str, float]) -> list[Part]:
    total = sum(seconds.values())
    return [Part(who, what, spent, spent / total if total else 0.0) for what, spent in seconds.items()]


def to_json(lines: list[Part]) -> list[dict[str, Any]]:
    """Return the lines as plain data."""
    return [asdict(line) for line in lines]


def to_table(lines: list[Part]) -> Table:
    """Return the lines as a table for a terminal."""
    table = Table(title="where the time went", title_justify="left")
    table.add_column("who")
    table.add_column("what")
    table.add_column("seconds", justify="right")
    table.add_column("share", justify="right")
    for place, line in enumerate(lines):
        last = place + 1 == len(lines) or lines[place + 1].who != line.who
        table.add_row(line.who, line.what, f"{line.seconds:.2f}", f"{line.share:.0%}", end_section=last)
    table.caption = "Clients' seconds are summed over workers; inside one process the server waits while they work."
    return table
