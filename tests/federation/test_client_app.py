"""The client app, asked message by message: sums, reports, memory, and clients that fail."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict
from torch import Tensor

from fedalign.contribution import Contribution, State
from fedalign.engines.in_process import InProcessGrid
from fedalign.errors import DataError, UserError
from fedalign.federation.client_app import make_client_app
from fedalign.federation.messages import (
    DESCRIBE,
    EVALUATE,
    INSTRUCTION,
    REPORT,
    RESTORE,
    SAVE,
    STATE,
    TRAIN,
    Instruction,
    NodeReport,
    Terms,
)
from fedalign.federation.records import decode_contribution, encode_tensors
from fedalign.federation.site import Site, load_memory
from fedalign.federation.versions import VERSIONS, versions_record
from fedalign.methods.base import Memory
from fedalign.metrics.record import MetricSum, decode
from fedalign.rng import Streams

from .toy import VECTORS, WEIGHTS, Halfway, grid_of, node, opener

START = {"w": torch.tensor([1.0, -1.0], dtype=torch.float64)}


def ask(
    grid: InProcessGrid, kind: str, clients: Sequence[str] = (), round: int = 1, state: State | None = None
) -> Message:
    """Send one order to the grid's first node and return its reply."""
    content = RecordDict({INSTRUCTION: Instruction("{}", 0, round, tuple(clients)).to_record()})
    if kind in (TRAIN, EVALUATE):
        content[STATE] = encode_tensors(START if state is None else state)
    if kind == DESCRIBE:
        content[VERSIONS] = versions_record()
    (number,) = list(grid.get_node_ids())[:1]
    (reply,) = grid.send_and_receive([grid.create_message(content, kind, number, str(round))])
    return reply


def delta_of(*clients: str) -> Tensor:
    moves = [WEIGHTS[c] * (torch.tensor(VECTORS[c], dtype=torch.float64) - START["w"]) / 2 for c in clients]
    return torch.stack(moves).sum(0)


def test_training_adds_the_clients_up() -> None:
    phase = Halfway()
    reply = ask(grid_of(opener([phase])), TRAIN, ["bob", "cid", "ada"], round=7)
    contribution = decode_contribution(reply.content)
    torch.testing.assert_close(contribution.tensors["delta/w"], delta_of("bob", "cid", "ada"))
    assert contribution.scalars["weight"] == 3.5
    assert decode(contribution.scalars) == [MetricSum("train/rounds", c, 1.0, 1.0) for c in ("ada", "bob", "cid")]
    report = NodeReport.of(reply.content)
    assert report.clients == ("bob", "cid", "ada")
    assert report.failures == ()
    assert report.seconds > 0
    assert phase.streams == [Streams(5, "halfway", 7, client) for client in ("bob", "cid", "ada")]


def test_bytes_are_counted_as_if_every_client_sent_its_own() -> None:
    grid = grid_of(opener([Halfway()]))
    one = NodeReport.of(ask(grid, TRAIN, ["ada"]).content).sent_bytes
    three = NodeReport.of(ask(grid, TRAIN, ["ada", "bob", "cid"]).content).sent_bytes
    assert one == 2 * 8 + 3 * 8
    assert three == 3 * one


@pytest.mark.parametrize("failing", ["ada", "bob", "cid"])
def test_a_client_that_fails_is_left_out_and_named(failing: str) -> None:
    others = [client for client in ("ada", "bob", "cid") if client != failing]
    reply = ask(grid_of(opener([Halfway(failing=[failing])])), TRAIN, ["ada", "bob", "cid"])
    torch.testing.assert_close(decode_contribution(reply.content).tensors["delta/w"], delta_of(*others))
    report = NodeReport.of(reply.content)
    assert report.clients == tuple(others)
    assert report.failures == ((failing, f"ValueError: {failing} has no power"),)


def test_when_all_fail_nothing_is_contributed() -> None:
    reply = ask(grid_of(opener([Halfway(failing=["ada", "bob"])])), TRAIN, ["ada", "bob"])
    assert decode_contribution(reply.content) == Contribution()
    report = NodeReport.of(reply.content)
    assert report.clients == ()
    assert [client for client, _ in report.failures] == ["ada", "bob"]


def test_evaluation_of_a_failing_client_is_left_out_too() -> None:
    reply = ask(grid_of(opener([Halfway(failing=["ada"])])), EVALUATE, ["ada", "uma"])
    assert [item.group for item in decode(decode_contribution(reply.content).scalars)] == ["uma"]
    assert NodeReport.of(reply.content).failures[0][0] == "ada"


def test_memory_lasts_from_round_to_round_and_dies_with_a_failure() -> None:
    phase, context = Halfway(), node(1)
    grid = grid_of(opener([phase]), context)
    for number in (1, 2):
        ask(grid, TRAIN, ["ada", "bob"], number)
    assert {c: load_memory(context, "halfway", c) for c in ("ada", "bob")} == {
        "ada": {"rounds": torch.tensor(2.0)},
        "bob": {"rounds": torch.tensor(2.0)},
    }
    phase.failing = ["ada"]
    ask(grid, TRAIN, ["ada", "bob"], 3)
    assert load_memory(context, "halfway", "ada") == {}
    assert load_memory(context, "halfway", "bob") == {"rounds": torch.tensor(3.0)}


def test_evaluation_keeps_nothing() -> None:
    context, phase = node(1), Halfway()
    ask(grid_of(opener([phase]), context), EVALUATE, ["ada", "uma"], round=4)
    assert not context.state.array_records
    assert phase.streams == [Streams(5, "halfway", 4, client) for client in ("ada", "uma")]


class Narrow(Halfway):
    """Replies in single precision."""

    def local(self, state: State, shard: tuple[str, Tensor], streams: Streams, memory: Memory) -> Contribution:
        return Contribution({"delta/w": torch.full((2,), 0.1)}, {"weight": 1.0})


def test_a_single_reply_keeps_its_precision_and_a_sum_is_double() -> None:
    grid = grid_of(opener([Narrow()]))
    single = decode_contribution(ask(grid, TRAIN, ["ada"]).content).tensors["delta/w"]
    both = decode_contribution(ask(grid, TRAIN, ["ada", "bob"]).content).tensors["delta/w"]
    assert (single.dtype, both.dtype) == (torch.float32, torch.float64)
    assert torch.equal(both, 2 * single.double())


@pytest.mark.parametrize(
    ("node_config", "names"),
    [
        ({}, ["ada", "bob", "cid", "dee", "uma"]),
        ({"partition-id": 1}, ["bob"]),
        ({"partition-id": 4}, ["uma"]),
        ({"partition-id": 0, "num-partitions": 2}, ["ada", "cid", "uma"]),
        ({"partition-id": 1, "num-partitions": 2}, ["bob", "dee"]),
        ({"partition-id": 5, "num-partitions": 6}, []),
        ({"partition-id": 1, "data-path": "here.jsonl"}, ["ada", "bob", "cid", "dee", "uma"]),
    ],
)
def test_a_node_says_whom_it_hosts(node_config: dict[str, object], names: list[str]) -> None:
    reply = ask(grid_of(opener([Halfway()]), node(1, **node_config)), DESCRIBE)
    described = json.loads(str(reply.content.config_records[REPORT]["clients"]))
    assert described == [[name, "unseen" if name == "uma" else "train", []] for name in names]


def answer(grid: InProcessGrid, kind: str, round: int) -> tuple[bool, bool]:
    record = ask(grid, kind, round=round).content.config_records[REPORT]
    return bool(record["done"]), bool(record["kept"])


@pytest.mark.parametrize("configured", ["argument", "node"])
def test_memories_are_saved_and_restored_on_request(tmp_path: Path, configured: str) -> None:
    state_path = tmp_path if configured == "argument" else None
    node_config = {} if configured == "argument" else {"state-path": str(tmp_path)}
    app = make_client_app(opener([Halfway()]), state_path)
    before, after = node(1, **node_config), node(2, **node_config)
    first, second = InProcessGrid(app, {1: before}), InProcessGrid(app, {2: after})
    assert answer(first, SAVE, 1) == (True, False)
    ask(first, TRAIN, ["ada"])
    assert answer(first, SAVE, 2) == (True, True)
    assert answer(second, RESTORE, 3) == (False, False)
    assert answer(second, RESTORE, 2) == (True, True)
    assert load_memory(after, "halfway", "ada") == {"rounds": torch.tensor(1.0)}


def test_a_node_without_a_place_for_memories_says_so() -> None:
    grid = grid_of(opener([Halfway()]))
    ask(grid, TRAIN, ["ada"])
    assert answer(grid, SAVE, 1) == (False, True)
    assert answer(grid, RESTORE, 1) == (False, False)


def test_a_node_that_cannot_open_its_site_replies_with_an_error() -> None:
    reply = ask(grid_of(opener([Halfway()]), node(1, broken=True)), TRAIN, ["ada"])
    assert reply.has_error()
    assert "no data here" in str(reply.error.reason)


def test_threads_of_the_site_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    grid = grid_of(opener([Halfway()]))
    ask(grid, TRAIN, ["ada"])
    assert chosen == []
    monkeypatch.setattr(torch, "get_num_threads", iter([3, 1]).__next__)
    ask(grid, TRAIN, ["ada"])
    assert chosen == [3]


@pytest.mark.parametrize("own", [False, True])
def test_the_text_of_an_error_leaves_only_where_data_are_not_the_node_s_own(own: bool) -> None:
    class Talkative(Halfway):
        def local(self, state: State, shard: tuple[str, Tensor], streams: Streams, memory: Memory) -> Contribution:
            raise ValueError("could not read 'my secret diary'")

    def discreet(config: str, node_config: Mapping[str, Any]) -> Site:
        return replace(opener([Talkative()])(config, node_config), discreet="data-path" in node_config)

    def unreadable(config: str, node_config: Mapping[str, Any]) -> Site:
        raise DataError("line 3 holds 'my secret diary'")

    at = node(1, **({"data-path": "here.jsonl"} if own else {}))
    ((_, reason),) = NodeReport.of(ask(grid_of(discreet, at), TRAIN, ["ada"]).content).failures
    assert ("secret" in reason) is not own
    error = str(ask(grid_of(unreadable, at), DESCRIBE).error.reason)
    assert ("secret" in error) is not own
    assert "DataError" in error


def test_what_is_wrong_with_settings_is_told(tmp_path: Path) -> None:
    def refuses(config: str, node_config: Mapping[str, Any]) -> Site:
        raise UserError("method.local.steps=0 must be at least 1")

    reply = ask(grid_of(refuses, node(1, **{"data-path": "here.jsonl"})), DESCRIBE)
    assert "method.local.steps=0" in str(reply.error.reason)


@pytest.mark.parametrize("round", ["../../elsewhere", -1, 1.5, True, None, [1]])
@pytest.mark.parametrize("kind", [SAVE, RESTORE, TRAIN])
def test_an_order_that_is_no_order_touches_nothing(tmp_path: Path, round: Any, kind: str) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    grid = grid_of(opener([Halfway()]), node(1, **{"state-path": str(kept)}))
    ask(grid, TRAIN, ["ada"])
    fields = {"config": "{}", "phase": 0, "round": round, "clients": [], "terms": asdict(Terms())}
    content = RecordDict({INSTRUCTION: ConfigRecord({"json": json.dumps(fields)}), STATE: encode_tensors(START)})
    (reply,) = grid.send_and_receive([grid.create_message(content, kind, 1, "1")])
    assert "round is not a whole number" in str(reply.error.reason)
    assert list(tmp_path.rglob("*")) == [kept]


def test_saving_removes_nothing_but_older_checkpoints(tmp_path: Path) -> None:
    others = [tmp_path / name for name in ("thesis", "0-1-draft", "photos")]
    for other in others:
        other.mkdir()
    grid = grid_of(opener([Halfway()]), node(1, **{"state-path": str(tmp_path)}))
    ask(grid, TRAIN, ["ada"])
    for number in range(1, 6):
        answer(grid, SAVE, number)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["thesis", "0-1-draft", "photos", "0-4", "0-5"])
