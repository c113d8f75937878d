"""The grid over workers: the same sums as in process, in the same order, whatever dies on the way."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from hypothesis import given, settings
from hypothesis import strategies as st

from fedalign.contribution import Contribution, total
from fedalign.engines.in_process import InProcessGrid
from fedalign.engines.ray_pieces import Piece
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
)
from fedalign.federation.records import decode_contribution, encode_tensors
from fedalign.federation.versions import VERSIONS, versions_record
from fedalign.metrics.record import decode
from tests.federation.toy import VECTORS, Halfway, ToyData, grid_of, node, opener

from .fake_pool import FakePool, Judge, grid_over, never

CLIENTS = tuple(VECTORS)
START = {"w": torch.tensor([1.0, -1.0], dtype=torch.float64)}


def order(grid: Grid, kind: str, clients: Sequence[str], number: int = 1, state: Any = None) -> Message:
    content = RecordDict({INSTRUCTION: Instruction("{}", 0, number, tuple(clients)).to_record()})
    if kind == DESCRIBE:
        content[VERSIONS] = versions_record()
    if kind in (TRAIN, EVALUATE):
        content[STATE] = encode_tensors(START) if state is None else state
    return grid.create_message(content, kind, 1, str(number))


def ask(
    grid: Grid, kind: str, clients: Sequence[str] = (), number: int = 1, timeout: float | None = None
) -> list[Message]:
    return list(grid.send_and_receive([order(grid, kind, clients, number)], timeout=timeout))


def reports(replies: Sequence[Message]) -> list[NodeReport]:
    return [NodeReport.of(reply.content) for reply in replies]


def sum_of(replies: Sequence[Message]) -> Contribution:
    return total(decode_contribution(reply.content) for reply in replies if NodeReport.of(reply.content).clients)


def killing(times: dict[str, int]) -> Judge:
    """Return what kills the workers of some clients so many times."""
    left = Counter(times)

    def kills(piece: Piece) -> bool:
        for client in piece.clients:
            if left[client] > 0:
                left[client] -= 1
                return True
        return False

    return kills


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10_000),
    workers=st.integers(1, 3),
    per_call=st.integers(1, 4),
    deaths=st.dictionaries(st.sampled_from(CLIENTS), st.integers(1, 2), max_size=2),
)
def test_whoever_dies_and_whoever_is_first_the_sums_and_memories_are_those_of_one_process(
    seed: int, workers: int, per_call: int, deaths: dict[str, int]
) -> None:
    site = opener([Halfway()])
    pool = FakePool(site, workers, random.Random(seed).randrange, killing(deaths))
    # A client may be innocent in a run of others that kill: retries are for all of them together.
    here, there = grid_of(site), grid_over(pool, per_call, retries=9)
    for number in (1, 2, 3):
        (one,), many = ask(here, TRAIN, CLIENTS, number), ask(there, TRAIN, CLIENTS, number)
        assert [client for report in reports(many) for client in report.clients] == list(CLIENTS)
        expected, got = decode_contribution(one.content), sum_of(many)
        torch.testing.assert_close(got.tensors, expected.tensors, rtol=0, atol=1e-15)
        # The rounds that every client remembers are among these: none is lost, none counts twice.
        assert decode(got.scalars) == decode(expected.scalars)
        assert {item.total for item in decode(got.scalars)} == {number}
    assert pool.most <= 2 * workers


def test_replies_come_one_by_one_and_work_goes_on_only_as_far_as_is_asked() -> None:
    pool = FakePool(opener([Halfway()]), 1)
    grid = grid_over(pool, clients_per_call=1)
    messages = [order(grid, TRAIN, [client]) for client in CLIENTS * 6]
    replies = iter(grid.send_and_receive(messages))
    assert pool.sent == []
    for taken in (1, 2):
        assert NodeReport.of(next(replies).content).clients == (CLIENTS[taken - 1],)
        assert pool.read == taken
        assert taken < len(pool.sent) < len(messages)
        assert pool.free() is None, "a worker waits while a reply is taken"
    assert len(list(replies)) == len(messages) - 2
    assert pool.abandoned == 0


def test_a_state_is_stored_once_an_exchange() -> None:
    pool = FakePool(opener([Halfway()]), 2)
    ask(grid_over(pool, clients_per_call=1), TRAIN, CLIENTS)
    assert pool.stored == 1


def test_messages_to_single_clients_are_answered_singly_and_share_their_state() -> None:
    pool = FakePool(opener([Halfway()]), 2)
    grid, state = grid_over(pool), encode_tensors(START)
    messages = [order(grid, TRAIN, [client], state=state) for client in CLIENTS]
    replies = list(grid.send_and_receive(messages))
    assert [report.clients for report in reports(replies)] == [(client,) for client in CLIENTS]
    assert [r.metadata.reply_to_message_id for r in replies] == [m.metadata.message_id for m in messages]
    assert {reply.metadata.src_node_id for reply in replies} == {1}
    assert pool.stored == 1


def test_a_worker_that_dies_once_costs_one_retry_and_nothing_else() -> None:
    site = opener([Halfway()])
    undisturbed = sum_of(ask(grid_over(FakePool(site, 2)), TRAIN, CLIENTS))
    replies = ask(grid_over(FakePool(site, 2, kills=killing({"cid": 1}))), TRAIN, CLIENTS)
    assert sum(report.retries for report in reports(replies)) == 1
    assert all(torch.equal(sum_of(replies).tensors[name], tensor) for name, tensor in undisturbed.tensors.items())
    assert sum_of(replies).scalars == undisturbed.scalars


@pytest.mark.parametrize("retries", [1, 2, 3])
def test_a_client_that_kills_every_worker_is_dropped_and_takes_nobody_with_it(retries: int) -> None:
    pool = FakePool(opener([Halfway()]), 1, kills=lambda piece: "bob" in piece.clients)
    grid = grid_over(pool, clients_per_call=4, retries=retries)
    told = reports(ask(grid, TRAIN, CLIENTS))
    assert [client for report in told for client in report.clients] == ["ada", "cid", "dee"]
    ((client, reason),) = [failure for report in told for failure in report.failures]
    assert client == "bob"
    assert reason == f"its worker died {retries + 1} times: shot"
    assert sum(clients == ("bob",) for clients in pool.sent) == 1
    again = reports(ask(grid, TRAIN, ["ada", "cid"]))
    assert [client for report in again for client in report.clients] == ["ada", "cid"]


def test_without_retries_the_clients_of_a_dead_worker_are_dropped_at_once() -> None:
    pool = FakePool(opener([Halfway()]), 1, kills=killing({"ada": 1}))
    told = reports(ask(grid_over(pool, clients_per_call=2, retries=0), TRAIN, CLIENTS))
    assert told[0].failures == (("ada", "its worker died 1 times: shot"), ("bob", "its worker died 1 times: shot"))
    assert (told[0].clients, told[0].retries) == ((), 0)


def test_calls_that_waited_behind_a_deadly_one_are_no_part_of_it() -> None:
    pool = FakePool(opener([Halfway()]), 1, kills=killing({"ada": 1}))
    told = reports(ask(grid_over(pool, clients_per_call=1, retries=1), TRAIN, CLIENTS))
    assert [report.retries for report in told] == [1, 0, 0, 0]


def test_who_does_not_answer_in_time_is_left_out_and_has_learnt_nothing() -> None:
    pool = FakePool(opener([Halfway()]), 2, hangs=lambda piece: "ada" in piece.clients, each=1)
    grid = grid_over(pool, clients_per_call=1)
    told = reports(ask(grid, TRAIN, CLIENTS, timeout=0.05))
    assert [report.clients for report in told] == [("bob",), ("cid",), ("dee",)]
    assert pool.abandoned == 1
    pool.hangs = never
    sums = {item.group: item.total for item in decode(sum_of(ask(grid, TRAIN, CLIENTS)).scalars)}
    assert sums == {"ada": 1.0, "bob": 2.0, "cid": 2.0, "dee": 2.0}


def test_a_reader_that_stops_leaves_no_call_behind() -> None:
    pool = FakePool(opener([Halfway()]), 2)
    grid = grid_over(pool, clients_per_call=1)
    replies = grid.send_and_receive([order(grid, TRAIN, CLIENTS)])
    next(replies)
    replies.close()
    assert pool.abandoned == 1


def test_memory_on_a_machine_that_is_gone_is_a_dropped_client_that_begins_anew() -> None:
    pool = FakePool(opener([Halfway()]), 2)
    grid = grid_over(pool, clients_per_call=1)
    ask(grid, TRAIN, CLIENTS)
    pool.loses = lambda piece: "cid" in piece.clients
    told = reports(ask(grid, TRAIN, CLIENTS))
    assert [report.failures for report in told] == [(), (), (("cid", "its machine is gone"),), ()]
    pool.loses = never
    sums = {item.group: item.total for item in decode(sum_of(ask(grid, TRAIN, CLIENTS)).scalars)}
    assert sums == {"ada": 3.0, "bob": 3.0, "cid": 1.0, "dee": 3.0}


def test_a_client_that_fails_is_named_and_its_memory_goes_as_in_process() -> None:
    phase = Halfway()
    site = opener([phase])
    grid, here = grid_over(FakePool(site, 2)), grid_of(site)
    for failing in ((), ("cid",), ()):
        phase.failing = failing
        (one,), many = ask(here, TRAIN, CLIENTS), ask(grid, TRAIN, CLIENTS)
        assert [f for report in reports(many) for f in report.failures] == list(reports([one])[0].failures)
        assert decode(sum_of(many).scalars) == decode(decode_contribution(one.content).scalars)


def test_an_app_that_raises_is_an_error_reply() -> None:
    def broken(config: str, node_config: Any) -> Any:
        raise FileNotFoundError("no data here")

    replies = ask(grid_over(FakePool(broken, 1), clients_per_call=4), TRAIN, ["ada"])
    assert [reply.error.code for reply in replies] == [ErrorCode.CLIENT_APP_RAISED_EXCEPTION]
    assert "FileNotFoundError: no data here" in str(replies[0].error.reason)


def test_evaluation_sums_are_those_of_one_process() -> None:
    site = opener([Halfway()])
    (one,), many = (
        ask(grid_of(site), EVALUATE, (*CLIENTS, "uma")),
        ask(grid_over(FakePool(site, 2), 1), EVALUATE, (*CLIENTS, "uma")),
    )
    assert decode(sum_of(many).scalars) == decode(decode_contribution(one.content).scalars)


def test_the_node_is_described_here_and_workers_are_told_the_configuration() -> None:
    site, pool = opener([Halfway()]), FakePool(opener([Halfway()]), 2)
    (here,), (there,) = ask(grid_of(site), DESCRIBE), ask(grid_over(pool), DESCRIBE)
    assert here.content.config_records[REPORT] == there.content.config_records[REPORT]
    assert pool.configs == ["{}"]
    assert pool.sent == []


@pytest.mark.parametrize("saved_by_workers", [True, False])
def test_memories_are_saved_and_restored_by_either_engine(tmp_path: Path, saved_by_workers: bool) -> None:
    site = opener([Halfway()])

    def grids() -> list[InProcessGrid]:
        return [
            grid_over(FakePool(site, 2), path=tmp_path),
            InProcessGrid(make_client_app(site, tmp_path), {1: node(1)}),
        ]

    first, second = grids()[0 if saved_by_workers else 1], grids()[1 if saved_by_workers else 0]
    ask(first, TRAIN, CLIENTS)
    (saved,) = ask(first, SAVE, number=1)
    assert dict(saved.content.config_records[REPORT]) == {"done": True, "kept": True}
    for expected in (2.0, 3.0):
        assert {item.total for item in decode(sum_of(ask(first, TRAIN, CLIENTS)).scalars)} == {expected}
    for grid in (second, first):
        (restored,) = ask(grid, RESTORE, number=1)
        assert restored.content.config_records[REPORT]["done"]
        assert {item.total for item in decode(sum_of(ask(grid, TRAIN, CLIENTS)).scalars)} == {2.0}


def test_replies_and_memories_on_a_machine_that_is_gone_are_missing_and_no_crash(tmp_path: Path) -> None:
    pool = FakePool(opener([Halfway()]), 1)
    grid = grid_over(pool, clients_per_call=4, path=tmp_path)
    ask(grid, TRAIN, CLIENTS)
    pool.gone = True
    (saved,) = ask(grid, SAVE)
    assert not saved.content.config_records[REPORT]["kept"]
    told = reports(ask(grid, TRAIN, ["ada"]))
    assert [report.failures for report in told] == [(("ada", "its reply is lost: its machine is gone"),)]


def test_nothing_kept_is_nothing_saved(tmp_path: Path) -> None:
    grid = grid_over(FakePool(opener([Halfway()], ToyData()), 1), path=tmp_path)
    (saved,) = ask(grid, SAVE)
    assert not saved.content.config_records[REPORT]["kept"]
    (restored,) = ask(grid, RESTORE, number=7)
    assert not restored.content.config_records[REPORT]["done"]


def test_pushed_messages_are_answered_once() -> None:
    grid = grid_over(FakePool(opener([Halfway()]), 1), clients_per_call=1)
    ids = list(grid.push_messages([order(grid, TRAIN, ["ada", "bob"])]))
    assert [report.clients for report in reports(list(grid.pull_messages(ids)))] == [("ada",), ("bob",)]
    assert list(grid.pull_messages([*ids, "unknown"])) == []


def test_no_messages_no_replies() -> None:
    assert list(grid_over(FakePool(opener([Halfway()]), 1)).send_and_receive([])) == []
