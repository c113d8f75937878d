"""The grid inside the process: every message is answered, once, and errors travel as replies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp

from fedalign.data.federated import ClientInfo, FederatedData
from fedalign.engines.in_process import InProcess, InProcessGrid
from fedalign.federation.messages import DESCRIBE, INSTRUCTION, REPORT, SAVE, Instruction
from fedalign.federation.site import Site
from fedalign.federation.versions import VERSIONS, versions_record


def node(number: int) -> Context:
    return Context(1, number, {"number": number}, RecordDict(), {})


def echo() -> ClientApp:
    """Return an app that answers with the node's number and how often it was asked, and fails when told to."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        told = message.content.config_records["told"]
        if told.get("fail"):
            raise OSError("disk\nfull")
        times = int(context.state.config_records.get("times", ConfigRecord({"n": 0}))["n"]) + 1
        context.state["times"] = ConfigRecord({"n": times})
        record = ConfigRecord({"node": int(context.node_config["number"]), "said": told["say"], "times": times})
        return Message(RecordDict({"answer": record}), reply_to=message)

    return app


@pytest.fixture
def grid() -> InProcessGrid:
    return InProcessGrid(echo(), {7: node(7), 8: node(8)})


def order(grid: Grid, number: int, say: str = "", fail: bool = False) -> Message:
    content = RecordDict({"told": ConfigRecord({"say": say, "fail": fail})})
    return grid.create_message(content, "train", number, "group")


def test_messages_are_answered_in_order(grid: InProcessGrid) -> None:
    sent = [order(grid, 8, "a"), order(grid, 7, "b"), order(grid, 8, "c")]
    replies = list(grid.send_and_receive(sent))
    answers = [reply.content.config_records["answer"] for reply in replies]
    assert [(a["node"], a["said"], a["times"]) for a in answers] == [(8, "a", 1), (7, "b", 1), (8, "c", 2)]
    assert [r.metadata.reply_to_message_id for r in replies] == [m.metadata.message_id for m in sent]
    assert [r.metadata.src_node_id for r in replies] == [8, 7, 8]
    assert len({m.metadata.message_id for m in sent}) == 3


def test_no_messages_no_replies(grid: InProcessGrid) -> None:
    assert list(grid.send_and_receive([])) == []


def test_replies_are_handed_out_once(grid: InProcessGrid) -> None:
    ids = list(grid.push_messages([order(grid, 7, "a")]))
    assert len(list(grid.pull_messages([*ids, "unknown"]))) == 1
    assert list(grid.pull_messages(ids)) == []


def test_an_app_that_raises_replies_with_the_reason(grid: InProcessGrid) -> None:
    good, bad = grid.send_and_receive([order(grid, 7, "a"), order(grid, 8, fail=True)])
    assert not good.has_error()
    assert bad.has_error()
    assert bad.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert "OSError: disk" in str(bad.error.reason)
    assert bad.metadata.src_node_id == 8


def test_ctrl_c_is_no_reply() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        raise KeyboardInterrupt

    grid = InProcessGrid(app, {7: node(7)})
    with pytest.raises(KeyboardInterrupt):
        list(grid.send_and_receive([order(grid, 7)]))


def test_the_nodes_are_those_it_was_made_with(grid: InProcessGrid) -> None:
    assert list(grid.get_node_ids()) == [7, 8]


def test_a_run_is_there_once_it_is_set(grid: InProcessGrid) -> None:
    with pytest.raises(RuntimeError, match="no run has been set"):
        _ = grid.run
    run = object()
    grid.set_run(run)  # type: ignore[arg-type]
    assert grid.run is run


def test_the_engine_hosts_everybody_on_one_node_that_saves_where_it_is_told(tmp_path: Path) -> None:
    engine = InProcess("in_process", 1)
    assert [engine.nodes(clients) for clients in (1, 10, 10_000)] == [1, 1, 1]
    answered: list[bool] = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        content = RecordDict({INSTRUCTION: Instruction("{}", 2, 3).to_record(), VERSIONS: versions_record()})
        (number,) = grid.get_node_ids()
        for kind in (DESCRIBE, SAVE):
            (reply,) = grid.send_and_receive([grid.create_message(content, kind, number, "")])
            answered.append(REPORT in reply.content.config_records)

    engine.run(server, lambda config, node_config: empty_site(), 4, tmp_path)
    assert answered == [True, True]
    assert [path.name for path in tmp_path.iterdir()] == ["2-3"]


def empty_site() -> Site:
    class NoData(FederatedData):
        """Nobody."""

        dropped: Mapping[str, int] = MappingProxyType({})

        @property
        def clients(self) -> list[ClientInfo]:
            return []

        def shard(self, client: str) -> None:
            raise KeyError(client)

    return Site(0, 1, [], NoData())
