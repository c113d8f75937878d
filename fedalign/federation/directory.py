"""Which clients are there and on which node: asked of the nodes, so that one seed gives one run whatever their ids."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.serverapp import Grid

from fedalign.data.federated import ClientInfo, Role
from fedalign.errors import RunFailed, UserError
from fedalign.federation.aggregation import Aggregation
from fedalign.federation.description import describe
from fedalign.federation.sampling import Sampler
from fedalign.methods.base import Needs, Participation, Phase

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
    stages : mapping from client to tuple of str
        Which parts of its data a client holds; one that is not named, or has no parts, takes part in all stages.
    """

    training: Sequence[str]
    unseen: Sequence[str]
    node_of: Mapping[str, int]
    stages: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, clients: Iterable[ClientInfo], node_of: Mapping[str, int] | None = None) -> ClientDirectory:
        """Return the directory of some clients, in whatever order they come."""
        known = sorted(clients, key=lambda client: client.name)
        training, unseen = ([c.name for c in known if c.role is role] for role in (Role.TRAIN, Role.UNSEEN))
        return cls(training, unseen, node_of or {}, {c.name: c.stages for c in known if c.stages})

    def joined(self, clients: Iterable[ClientInfo], node: int) -> ClientDirectory:
        """Return the directory with a node's clients in it; those that are known already have moved there."""
        fresh = {client.name: client for client in clients}
        known = [(name, Role.TRAIN) for name in self.training] + [(name, Role.UNSEEN) for name in self.unseen]
        stay = [ClientInfo(name, role, self.stages.get(name, ())) for name, role in known if name not in fresh]
        return ClientDirectory.of([*stay, *fresh.values()], {**self.node_of, **dict.fromkeys(fresh, node)})

    def check_least(self, phases: Sequence[Phase[Any]], least: int) -> None:
        """Refuse a minimum of contributions that a phase can never reach.

        Raises
        ------
        UserError
            Naming the phase.
        """
        for phase in phases:
            clients = len(self.training_for(phase.stage))
            if phase.rounds and clients < least:
                raise UserError(
                    f"federation.min_clients={least}: phase {phase.name!r} has {clients} training clients; lower it"
                )

    def training_for(self, stage: str | None) -> list[str]:
        """Return the training clients that hold what a stage reads; None reads all of everybody's."""
        return [client for client in self.training if stage is None or stage in (self.stages.get(client) or (stage,))]

    def evaluated_for(self, phase: Phase[Any]) -> list[str]:
        """Return the clients that a phase is evaluated on: those it may learn from, then the unseen."""
        training = self.training_for(phase.stage) if Role.TRAIN in phase.evaluated else []
        return [*training, *(self.unseen if Role.UNSEEN in phase.evaluated else [])]

    def check(self, phases: Sequence[Phase[Any]], sampler: Sampler) -> None:
        """Refuse phases that nobody can train, or too few for the sampler.

        Raises
        ------
        UserError
            Naming the phase and its stage, or the sampler's setting.
        """
        for phase in phases:
            if not phase.rounds:
                continue
            clients = len(self.training_for(phase.stage))
            if not clients:
                raise UserError(
                    f"partition: no training client holds data of stage {phase.stage!r}, which phase {phase.name!r} "
                    f"learns from; give it users (partition.shares.{phase.stage}), or leave the phase out of the method"
                )
            sampler.check(clients)

    def check_cohorts(self, phases: Sequence[Phase[Any]], sampler: Sampler, aggregation: Aggregation) -> None:
        """Refuse cohorts too small for an aggregation.

        Raises
        ------
        UserError
            Saying how many clients a round needs.
        """
        for phase in phases:
            if phase.rounds and phase.needs is Needs.SUM:
                clients = len(self.training_for(phase.stage))
                sampled = phase.participation is Participation.SAMPLED
                aggregation.check_cohort(int(sampler.describe(clients).expected) if sampled else clients)

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
        If a node cannot answer or runs another version, or two nodes claim the same client.
    """
    nodes = wait_for_nodes(grid, expected, timeout)
    told = [description.checked() for description in describe(grid, config, nodes, timeout)]
    node_of: dict[str, int] = {}
    for name, node in ((client.name, description.node) for description in told for client in description.clients):
        if name in node_of:
            raise RunFailed(
                f"client {name} is on two nodes; give each node its own partition or data, or a client-prefix in "
                "its node configuration"
            )
        node_of[name] = node
    if len(told) < len(nodes):
        raise RunFailed(f"{len(told)} of {len(nodes)} nodes described themselves within {timeout:g} s")
    directory = ClientDirectory.of([client for description in told for client in description.clients], node_of)
    if not directory.training:
        raise RunFailed("no node hosts a training client; check the partition's training groups")
    return directory
