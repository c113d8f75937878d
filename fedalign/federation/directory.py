"""Which clients are there and on which node: asked of the nodes, so that one seed gives one run whatever their ids."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

from flwr.app import RecordDict
from flwr.serverapp import Grid

from fedalign.data.schema import Role
from fedalign.errors import RunFailed
from fedalign.federation.messages import DESCRIBE, INSTRUCTION, REPORT, Instruction

_POLL_SECONDS = 0.05
_SETTLE_SECONDS = 3.0


@dataclass(frozen=True)
class ClientDirectory:
    """All clients of a federation in a fixed order, and where they live.

    Parameters
    ----------
    training, unseen : sequence of str
        Sorted by name, so that sampling does not depend on which node answered first.
    node_of : dict from client to node id
    """

    training: Sequence[str]
    unseen: Sequence[str]
    node_of: dict[str, int]

    def by_node(self, clients: Sequence[str]) -> dict[int, list[str]]:
        """Group clients by the node that hosts them, keeping their order."""
        grouped: dict[int, list[str]] = {}
        for client in clients:
            grouped.setdefault(self.node_of[client], []).append(client)
        return grouped


def wait_for_nodes(grid: Grid, expected: int, timeout: float) -> list[int]:
    """Wait until ``expected`` nodes are connected and return their ids, sorted.

    Flower starts the server before its nodes are registered; a round drawn too early would see only some.
    With ``expected`` 0 the wait ends when nodes are there and no other has come for a few seconds.

    Raises
    ------
    RunFailed
        If they do not come within ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    nodes: list[int] = []
    changed = time.monotonic()
    while True:
        before, nodes = nodes, sorted(grid.get_node_ids())
        if nodes != before:
            changed = time.monotonic()
        settled = bool(nodes) and time.monotonic() - changed > _SETTLE_SECONDS
        if (expected and len(nodes) >= expected) or (not expected and settled):
            return nodes
        if time.monotonic() > deadline:
            raise RunFailed(
                f"{len(nodes)} of {expected or 'any'} nodes connected within {timeout:g} s; "
                "start the others or raise federation.node_timeout"
            )
        time.sleep(_POLL_SECONDS)


def discover(grid: Grid, config: str, expected: int, timeout: float) -> ClientDirectory:
    """Ask every node which clients it hosts.

    Raises
    ------
    RunFailed
        If a node cannot answer, or two nodes claim the same client.
    """
    nodes = wait_for_nodes(grid, expected, timeout)
    content = RecordDict({INSTRUCTION: Instruction(config).to_record()})
    messages = [grid.create_message(content, DESCRIBE, node, "describe") for node in nodes]
    replies = list(grid.send_and_receive(messages, timeout=timeout))
    node_of: dict[str, int] = {}
    roles: dict[str, Role] = {}
    for reply in replies:
        if reply.has_error():
            raise RunFailed(f"node {reply.metadata.src_node_id} cannot start: {reply.error.reason}")
        for name, role in json.loads(str(reply.content.config_records[REPORT]["clients"])):
            if name in node_of:
                raise RunFailed(f"client {name} is on two nodes; give each node its own partition or data")
            node_of[name], roles[name] = reply.metadata.src_node_id, Role(role)
    if len(replies) < len(nodes):
        raise RunFailed(f"{len(replies)} of {len(nodes)} nodes described themselves within {timeout:g} s")
    training = sorted(name for name, role in roles.items() if role is Role.TRAIN)
    unseen = sorted(name for name, role in roles.items() if role is Role.UNSEEN)
    if not training:
        raise RunFailed("no node hosts a training client; check the partition's training groups")
    return ClientDirectory(training, unseen, node_of)
