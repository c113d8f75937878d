"""What clients keep between rounds, as the server sees it: saved at a checkpoint, and put back on resume."""

from __future__ import annotations

import logging

from flwr.app import ConfigRecord, RecordDict
from flwr.serverapp import Grid

from fedalign.errors import RunFailed
from fedalign.federation.checkpoint import Checkpoint
from fedalign.federation.exchange import exchange
from fedalign.federation.messages import INSTRUCTION, REPORT, RESTORE, SAVE, Instruction

_log = logging.getLogger(__name__)


class NodeMemories:
    """Talks to the nodes about their clients' memories, which never travel.

    Parameters
    ----------
    grid : Grid
    config : str
        The resolved run configuration as JSON.
    timeout : float
        Seconds to wait for the nodes.
    """

    def __init__(self, grid: Grid, config: str, timeout: float) -> None:
        self._grid, self._config, self._timeout = grid, config, timeout

    def save(self, phase: int, number: int) -> bool:
        """Let the nodes save, and tell whether there was anything to."""
        kept = [reply for reply in self._ask(SAVE, phase, number) if reply["kept"]]
        if not all(reply["done"] for reply in kept):
            _log.warning("nodes without a state-path keep client memory in RAM only: this run cannot be resumed")
        return bool(kept)

    def restore(self, start: Checkpoint) -> None:
        """Let the nodes go back to a checkpoint.

        Raises
        ------
        RunFailed
            If a node has nothing saved of it.
        """
        lost = sum(not reply["done"] for reply in self._ask(RESTORE, start.phase, start.round))
        if lost:
            raise RunFailed(
                f"{lost} nodes have no saved client memory of checkpoint {start.tag}; resume on the engine the run "
                "was started with, and give deployed nodes a state-path in their node configuration"
            )

    def _ask(self, what: str, phase: int, number: int) -> list[ConfigRecord]:
        """Send one query to every node and return the answers; a node that fails is an error."""
        content = RecordDict({INSTRUCTION: Instruction(self._config, phase, number).to_record()})
        nodes = sorted(self._grid.get_node_ids())
        messages = [self._grid.create_message(content, what, node, f"{phase}-{number}") for node in nodes]
        replies = list(exchange(self._grid, messages, self._timeout))
        broken = [str(reply.error.reason) for reply in replies if reply.has_error()]
        if broken:
            raise RunFailed(f"{what} failed on {len(broken)} nodes; the first said: {broken[0].strip()}")
        return [reply.content.config_records[REPORT] for reply in replies]
