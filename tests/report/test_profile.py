"""Where the time went: lines add up to the run, and nothing is counted twice."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from fedalign.report.profile import parts, to_json, to_table

COUNTERS = {
    "start_s": 1.0, "wait_s": 5.0, "decode_s": 0.5, "aggregate_s": 0.25, "evaluate_s": 2.0, "save_s": 0.75,
    "update_s": 4.0, "client_data_s": 1.5, "client_evaluate_data_s": 0.5, "client_evaluate_s": 1.0,
    "client_message_s": 0.1,
}  # fmt: skip


def seconds(who: str) -> dict[str, float]:
    return {line.what: line.seconds for line in parts(COUNTERS, total=12.0, data=2.0) if line.who == who}


def test_the_servers_parts_add_up_to_the_run() -> None:
    server = seconds("server")
    assert sum(server.values()) == pytest.approx(12.0)
    assert server["other"] == pytest.approx(0.5)
    assert (server["data"], server["waiting for training"], server["serialisation"]) == (2.0, 5.0, 0.5)


def test_what_clients_waited_for_their_data_is_no_part_of_their_passes() -> None:
    clients = seconds("clients")
    assert clients == {
        "data": 1.5,
        "forward and backward passes": pytest.approx(3.0),
        "evaluation": 0.5,
        "messages": 0.1,
    }


def test_shares_are_of_those_who_spent_them() -> None:
    lines = parts(COUNTERS, total=12.0, data=2.0)
    for who in ("server", "clients"):
        assert sum(line.share for line in lines if line.who == who) == pytest.approx(1.0)
    assert all(line.share == 0.0 for line in parts({}, total=0.0, data=0.0))


def test_every_line_is_shown_and_written() -> None:
    lines = parts(COUNTERS, total=12.0, data=2.0)
    console = Console(file=io.StringIO(), width=100)
    console.print(to_table(lines))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(line.what in shown for line in lines)
    assert to_json(lines)[0] == {"who": "server", "what": "data", "seconds": 2.0, "share": pytest.approx(1 / 6)}
