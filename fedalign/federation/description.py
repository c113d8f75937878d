"""What nodes tell of themselves: which clients they host, and that they run the server's version."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedalign.data.federated import ClientInfo, Role
from fedalign.errors import RunFailed, UserError
from fedalign.federation.exchange import exchange
from fedalign.federation.messages import DESCRIBE, INSTRUCTION, REPORT, Instruction
from fedalign.federation.versions import VERSIONS, check_versions, versions_record


@dataclass(frozen=True)
class Description:
    """One node's answer.

    Parameters
    ----------
    node : int
    clients : tuple of ClientInfo
    trouble : str or None
        Why it cannot take part.
    """

    node: int
    clients: tuple[ClientInfo, ...] = ()
    trouble: str | None = None

    def checked(self) -> Description:
        """Return itself.

        Raises
        ------
        RunFailed
            If the node cannot take part.
        """
        if self.trouble is not None:
            raise RunFailed(self.trouble)
        return self


def describe(grid: Grid, config: str, nodes: Sequence[int], timeout: float) -> Iterator[Description]:
    """Ask nodes what they host and yield the answers as they come; one that does not answer in time is missing.

    Parameters
    ----------
    grid : Grid
    config : str
        The resolved run configuration as JSON.
    nodes : sequence of int
    timeout : float
        Seconds to wait for all answers together.
    """
    content = RecordDict({INSTRUCTION: Instruction(config).to_record(), VERSIONS: versions_record()})
    messages = [grid.create_message(content, DESCRIBE, node, "describe") for node in nodes]
    for reply in exchange(grid, messages, timeout):
        yield _read(reply)


def description_record(clients: Sequence[ClientInfo]) -> RecordDict:
    """Return a node's answer as it travels."""
    told = [(client.name, client.role.value, client.stages) for client in clients]
    return RecordDict({REPORT: ConfigRecord({"clients": json.dumps(told)}), VERSIONS: versions_record()})


def _read(reply: Message) -> Description:
    node = reply.metadata.src_node_id
    if reply.has_error():
        return Description(node, trouble=f"node {node} cannot start: {reply.error.reason}")
    try:
        check_versions(reply.content, "the server", f"node {node}")
        told = json.loads(str(reply.content.config_records[REPORT]["clients"]))
        return Description(node, tuple(ClientInfo(str(n), Role(r), tuple(map(str, s))) for n, r, s in told))
    except UserError as error:
        return Description(node, trouble=str(error))
    except (KeyError, TypeError, ValueError) as error:
        return Description(node, trouble=f"node {node} does not say which clients it hosts: {error!r}")
