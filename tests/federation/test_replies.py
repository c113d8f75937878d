"""Reading replies: nobody is counted twice, what does not fit is left out, and nothing is kept."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
import torch
from flwr.app import Error, Message, RecordDict

from fedalign.contribution import Contribution, UnorderedTotal
from fedalign.errors import RunFailed
from fedalign.federation.messages import REPORT, NodeReport
from fedalign.federation.records import encode_contribution
from fedalign.federation.replies import ReplyReader, Tally

from .toy import Halfway, grid_of, opener

ASKED = ("ada", "bob", "cid")
NODE = 11


def reply(*clients: str, value: float = 1.0, size: int = 2, **report: int) -> Message:
    content = encode_contribution(Contribution({"delta/w": torch.full((size,), value)}, {"weight": 1.0}))
    content[REPORT] = NodeReport(clients, 0.5, 10, **report).to_record()
    message = grid_of(opener([Halfway()])).create_message(content, "train", NODE, "1")
    message.metadata.__dict__["_src_node_id"] = NODE
    return message


def reader(tally: Tally, inspect: object = lambda clients, told: None) -> ReplyReader:
    node_of = dict.fromkeys(ASKED, NODE)
    return ReplyReader("round 1", frozenset(ASKED), node_of, tally, inspect, "train", "1")  # type: ignore[arg-type]


def read(*replies: Message) -> tuple[Contribution, Tally]:
    tally, running = Tally(asked=len(ASKED)), UnorderedTotal()
    reader(tally).read(replies, lambda _, told: running.add(told))
    return running.value(), tally


def test_replies_of_one_node_add_up_with_their_reports() -> None:
    summed, tally = read(reply("ada", "cid"), reply("bob", value=2.0, retries=3))
    assert summed.tensors["delta/w"].tolist() == [3.0, 3.0]
    assert (tally.updates, tally.failed, tally.seconds, tally.sent_bytes, tally.retries) == (3, 0, 1.0, 20, 3)


@pytest.mark.parametrize("second", [("ada",), ("bob", "ada"), ("bob", "bob"), ("eve",)])
def test_nobody_is_heard_twice_or_unasked(second: tuple[str, ...]) -> None:
    summed, tally = read(reply("ada"), reply(*second, value=100.0))
    assert summed.tensors["delta/w"].tolist() == [1.0, 1.0]
    assert tally.updates == 1
    assert "it answers" in tally.reasons[0]


def test_a_reply_that_was_refused_may_be_given_again() -> None:
    summed, tally = read(reply("ada"), reply("bob", size=3), reply("bob", value=2.0))
    assert summed.tensors["delta/w"].tolist() == [3.0, 3.0]
    assert tally.updates == 2
    assert tally.reasons == ["bob: delta/w: shape (3,) does not add to (2,)"]


def test_an_exchange_that_nobody_answered_says_why() -> None:
    tally = Tally(asked=2)
    told = reader(tally)
    error = Message(Error(0, "the disk is gone"), reply_to=reply("ada"))
    told.read([error], lambda _, contribution: None)
    with pytest.raises(RunFailed, match="every client failed in round 1; the first said: the disk is gone"):
        told.check_answered()
    silent = reader(Tally(asked=2))
    silent.read([], lambda _, contribution: None)
    with pytest.raises(RunFailed, match="no reply in time"):
        silent.check_answered()


def test_no_reply_outlives_its_turn() -> None:
    alive: list[weakref.ref[RecordDict]] = []
    most = 0

    def replies() -> Iterator[Message]:
        nonlocal most
        for client in ASKED:
            message = reply(client)
            alive.append(weakref.ref(message.content))
            gc.collect()
            most = max(most, sum(known() is not None for known in alive))
            yield message
            del message

    reader(Tally(asked=3)).read(replies(), lambda _, told: None)
    # The one that is read, and the one that comes next.
    assert most <= 2
