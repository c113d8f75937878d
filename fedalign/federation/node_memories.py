"""What clients keep between rounds, as the server sees it: saved at a checkpoint, and put back on resume."""

from __future__ import annotations

import logging

from flwr.app import ConfigRecord, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from fedalign.errors import RunFailed
from fedalign.federation.checkpoint import Checkpoint
from fedalign.federation.exchange import exchange
from fedalign.federation.messages import INSTRUCTION, REPORT, RESTORE, SAVE, Instruction

_log = logging.getLogger(__name__)

_GONE = (ErrorCode.NODE_UNAVAILABLE, ErrorCode.CLIENT_APP_CRASHED, ErrorCode.MESSAGE_UNAVAILABLE)
"""What Flower answers for a node whose machine or process has died."""


class NodeMemories:
    """Talks to the nodes about their clients' memories, which never travel.

    Parameters
    ----------
    grid : Grid
    config : str
        The resolved run configuration as JSON.
    timeout : float
        Seconds to wait for the nodes.

    Attributes
    ----------
    away : frozenset of int
        Nodes that are not to be asked.
    """

    def __init__(self, grid: Grid, config: str, timeout: float) -> None:
        self._grid, self._config, self._timeout = grid, config, timeout
        self.away: frozenset[int] = frozenset()

    def save(self, phase: int, number: int) -> bool:
        """Let the nodes save, and tell whether there was anything to; one that is gone is named in the log.

        Raises
        ------
        RunFailed
            If a node is there and cannot save.
        """
        answers, broken, silent = self._ask(SAVE, phase, number)
        if broken:
            raise RunFailed(f"{SAVE} failed on {len(broken)} nodes; the first said: {broken[0]}")
        for trouble in silent:
            _log.warning("checkpoint after round %d lacks the memory of a node's clients: %s", number, trouble)
        kept = [answer for answer in answers if answer["kept"]]
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
        answers, broken, silent = self._ask(RESTORE, start.phase, start.round)
        if broken or silent:
            reasons = [*broken, *silent]
            raise RunFailed(f"{RESTORE} failed on {len(reasons)} nodes; the first said: {reasons[0]}")
        lost = sum(not answer["done"] for answer in answers)
        if lost:
            raise RunFailed(
                f"{lost} nodes have no saved client memory of checkpoint {start.tag}; resume on the engine the run "
                "was started with, and give deployed nodes a state-path in their node configuration"
            )

    def _ask(self, what: str, phase: int, number: int) -> tuple[list[ConfigRecord], list[str], list[str]]:
        """Send one query to every node that is there; return answers, what nodes could not do, and who said nothing."""
        content = RecordDict({INSTRUCTION: Instruction(self._config, phase, number).to_record()})
        nodes = sorted(set(self._grid.get_node_ids()) - self.away)
        messages = [self._grid.create_message(content, what, node, f"{phase}-{number}") for node in nodes]
        answers: list[ConfigRecord] = []
        broken: list[str] = []
        silent = {node: f"node {node}: no answer within {self._timeout:g} s" for node in nodes}
        for reply in exchange(self._grid, messages, self._timeout):
            node = reply.metadata.src_node_id
            if not reply.has_error():
                answers.append(reply.content.config_records[REPORT])
                silent.pop(node, None)
                continue
            told = f"node {node}: {str(reply.error.reason).strip()}"
            if reply.error.code in _GONE:
                silent[node] = told
            else:
                broken.append(told)
                silent.pop(node, None)
        return answers, broken, list(silent.values())
