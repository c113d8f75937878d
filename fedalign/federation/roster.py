"""Who is there while a run goes on: nodes that vanish are left alone until they are back, late ones are taken in."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from flwr.serverapp import Grid

from fedalign.errors import RunFailed
from fedalign.federation.description import Description, describe
from fedalign.federation.directory import ClientDirectory

_log = logging.getLogger(__name__)

_POLL_SECONDS = 0.5


class Roster:
    """The clients of a run and which of their nodes are connected.

    Parameters
    ----------
    grid : Grid
    config : str
        The resolved run configuration as JSON.
    directory : ClientDirectory
        Who was there at the start.
    timeout : float
        Seconds to wait for a late node's answer, and for nodes while none of the run's is connected.
    fixed : bool
        Whether nobody may join: a guarantee is stated for the clients of the start.
    """

    def __init__(self, grid: Grid, config: str, directory: ClientDirectory, timeout: float, fixed: bool) -> None:
        self._grid, self._config, self._timeout, self._fixed = grid, config, timeout, fixed
        self.directory = directory
        self.away: frozenset[int] = frozenset()
        self._known = set(directory.node_of.values())
        self._ignored: set[int] = set()

    def refresh(self) -> None:
        """Look who is connected: note who has gone and who is back, and take in who is new.

        Raises
        ------
        RunFailed
            If none of the run's nodes is connected, and none comes back in time.
        """
        present = self._wait_for_anybody()
        self._note(frozenset(self._hosts() - present))
        late = sorted(present - self._known - self._ignored)
        if late and self._fixed:
            for node in late:
                _log.warning(
                    "node %d came late and is not taken in: the guarantee is for the clients of the start", node
                )
            self._ignored.update(late)
        elif late:
            self._take_in(late)

    def _hosts(self) -> set[int]:
        return set(self.directory.node_of.values())

    def _wait_for_anybody(self) -> set[int]:
        deadline = time.monotonic() + self._timeout
        told = False
        while True:
            present = set(self._grid.get_node_ids())
            if present & self._hosts() or (present - self._ignored - self._known and not self._fixed):
                return present
            if time.monotonic() > deadline:
                raise RunFailed(
                    f"all {len(self._hosts())} nodes are gone and none came back within {self._timeout:g} s; "
                    "start them again and resume the run, or raise federation.node_timeout"
                )
            if not told:
                _log.warning("all nodes of the run are gone; waiting %g s for one to come back", self._timeout)
                told = True
            time.sleep(_POLL_SECONDS)

    def _note(self, away: frozenset[int]) -> None:
        for node in sorted(away - self.away):
            _log.warning("node %d (%s) is gone; the run goes on without it", node, self._clients_of(node))
        for node in sorted(self.away - away):
            _log.warning("node %d (%s) is back", node, self._clients_of(node))
        self.away = away

    def _clients_of(self, node: int) -> str:
        return ", ".join(client for client, host in self.directory.node_of.items() if host == node) or "no clients"

    def _take_in(self, late: Sequence[int]) -> None:
        answered = {told.node: told for told in describe(self._grid, self._config, late, self._timeout)}
        for node in late:
            told = answered.get(node, Description(node, trouble=f"node {node} does not answer"))
            trouble = told.trouble or self._conflict(told)
            if trouble is not None:
                _log.warning("a node that came late is not taken in: %s", trouble)
                self._ignored.add(node)
                continue
            self._known.add(node)
            self.directory = self.directory.joined(told.clients, node)
            _log.warning("node %d (%s) came late and takes part from now on", node, self._clients_of(node))
        self.away = frozenset(self.away & self._hosts())

    def _conflict(self, told: Description) -> str | None:
        """Say which of a node's clients is on another one that is there; a restarted node may have a new id."""
        nodes = self.directory.node_of
        doubled = [c.name for c in told.clients if c.name in nodes and nodes[c.name] not in self.away]
        return f"client {doubled[0]} of node {told.node} is on another node" if doubled else None
