"""Where the time of a run went, in one table: what the server's process did, and what clients did, over all workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table


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


def parts(counters: Mapping[str, float], total: float, data: float) -> list[Part]:
    """Return the lines of a run's profile.

    Parameters
    ----------
    counters : mapping from name to seconds
        Of the run's outcome.
    total : float
        Wall time in seconds; what nothing else tells is told as other.
    data : float
        Of these, the seconds in which the server's process read, laid out and encoded data.
    """

    def count(name: str) -> float:
        return counters.get(name, 0.0)

    server = {
        "data": data,
        "start-up": count("start_s"),
        "waiting for training": count("wait_s"),
        "serialisation": count("decode_s"),
        "aggregation": count("aggregate_s"),
        "waiting for evaluations": count("evaluate_s"),
        "checkpoints and reports": count("save_s"),
    }
    server["other"] = max(0.0, total - sum(server.values()))
    evaluated = count("client_evaluate_data_s")
    clients = {
        "data": count("client_data_s"),
        "forward and backward passes": count("update_s") - (count("client_data_s") - evaluated),
        "evaluation": count("client_evaluate_s") - evaluated,
        "messages": count("client_message_s"),
    }
    return [*_lines("server", server), *_lines("clients", clients)]


def _lines(who: str, seconds: Mapping[str, float]) -> list[Part]:
    total = sum(seconds.values())
    return [Part(who, what, spent, spent / total if total else 0.0) for what, spent in seconds.items()]


def to_json(lines: Sequence[Part]) -> list[dict[str, Any]]:
    """Return the lines as plain data."""
    return [asdict(line) for line in lines]


def to_table(lines: Sequence[Part]) -> Table:
    """Return the lines as a table for a terminal."""
    table = Table(title="where the time went", title_justify="left", caption_justify="left")
    table.add_column("who")
    table.add_column("what")
    table.add_column("seconds", justify="right")
    table.add_column("share", justify="right")
    for place, line in enumerate(lines):
        last = place + 1 == len(lines) or lines[place + 1].who != line.who
        table.add_row(line.who, line.what, f"{line.seconds:.2f}", f"{line.share:.0%}", end_section=last)
    table.caption = "clients: summed over workers; inside one process the server waits while they work"
    return table
