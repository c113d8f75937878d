"""A federation that can be checked by hand: every client holds a vector, and training moves halfway towards it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from flwr.app import Context, RecordDict
from torch import Tensor

from fedalign.contribution import Contribution, State, weighted_delta
from fedalign.data.federated import ClientInfo, FederatedData, Role
from fedalign.engines.in_process import InProcessGrid
from fedalign.federation.aggregation import Mean
from fedalign.federation.client_app import make_client_app
from fedalign.federation.site import OpenSite, Site
from fedalign.methods.base import Artefacts, Memory, Needs, Participation, Phase, ServerOptimizer
from fedalign.metrics.record import MetricSum, encode
from fedalign.rng import Streams

MEAN = Mean(client_weight=None, client_norm=None, client_scalars=1000)
"""Aggregation that believes what clients say that they weigh."""

VECTORS = {"ada": (1.0, 0.0), "bob": (0.0, 3.0), "cid": (-2.0, 5.0), "dee": (0.5, 0.25)}
WEIGHTS = {"ada": 1.0, "bob": 2.0, "cid": 0.5, "dee": 3.0}
UNSEEN = {"uma": (7.0, 7.0)}


class ToyData(FederatedData):
    """Clients whose shard is their name and vector."""

    dropped: Mapping[str, int] = {}

    def __init__(self, training: Sequence[str] = tuple(VECTORS), unseen: Sequence[str] = tuple(UNSEEN)) -> None:
        self.training, self.unseen = training, unseen

    @property
    def clients(self) -> list[ClientInfo]:
        training = [ClientInfo(name, Role.TRAIN) for name in self.training]
        return [*training, *(ClientInfo(name, Role.UNSEEN) for name in self.unseen)]

    def shard(self, client: str) -> tuple[str, Tensor]:
        return client, torch.tensor({**VECTORS, **UNSEEN}[client], dtype=torch.float64)


class Halfway(Phase[tuple[str, Tensor]]):
    """Moves the state halfway to the client's vector, and counts a client's rounds in its memory."""

    name = "halfway"

    def __init__(
        self,
        rounds: int = 3,
        failing: Sequence[str] = (),
        needs: Needs = Needs.SUM,
        participation: Participation = Participation.SAMPLED,
    ) -> None:
        self.rounds, self.failing, self.needs, self.participation = rounds, failing, needs, participation
        self.artefacts: Artefacts = {}
        self.streams: list[Streams] = []

    def initial(self, streams: Streams, artefacts: Artefacts) -> State:
        self.artefacts = artefacts
        return {"w": torch.zeros(2, dtype=torch.float64)}

    def local(self, state: State, shard: tuple[str, Tensor], streams: Streams, memory: Memory) -> Contribution:
        client, vector = shard
        self.streams.append(streams)
        memory["rounds"] = memory.get("rounds", torch.zeros(())) + 1
        if client in self.failing:
            raise ValueError(f"{client} has no power")
        delta = weighted_delta(state, {"w": state["w"] + (vector - state["w"]) / 2}, WEIGHTS[client])
        seen = encode([MetricSum("train/rounds", client, float(memory["rounds"]), 1.0)])
        return Contribution(delta.tensors, {**delta.scalars, **seen})

    def update_each(self, state: State, replies: Sequence[Contribution], optimizer: ServerOptimizer) -> State:
        moves = torch.stack([reply.tensors["delta/w"] / reply.scalars["weight"] for reply in replies])
        self.replies = len(replies)
        return {"w": state["w"] + moves.median(0).values}

    def evaluate(self, state: State, shard: tuple[str, Tensor], streams: Streams) -> Contribution:
        client, vector = shard
        self.streams.append(streams)
        if client in self.failing:
            raise ValueError(f"{client} has no power")
        closeness = 1 / (1 + float((state["w"] - vector).norm()))
        population = "unseen" if client in UNSEEN else "train"
        return Contribution(scalars=encode([MetricSum(f"{population}/closeness", client, 2 * closeness, 2.0)]))


def after_a_round(state: Tensor, clients: Sequence[str] = tuple(VECTORS)) -> Tensor:
    """Return the weighted mean of the clients' states after a round from ``state``."""
    moved = [WEIGHTS[c] * (state + (torch.tensor(VECTORS[c], dtype=torch.float64) - state) / 2) for c in clients]
    return sum(moved) / sum(WEIGHTS[c] for c in clients)


def opener(phases: Sequence[Phase[Any]], data: FederatedData | None = None) -> OpenSite:
    """Return what opens the toy's site on every node; one thread."""
    toy = ToyData() if data is None else data

    def open_site(config: str, node_config: Mapping[str, Any]) -> Site:
        if node_config.get("broken"):
            raise FileNotFoundError("no data here")
        return Site(5, torch.get_num_threads(), phases, node_config.get("data", toy))

    return open_site


def node(number: int, **node_config: Any) -> Context:
    return Context(1, number, node_config, RecordDict(), {})


def grid_of(open_site: OpenSite, *contexts: Context) -> InProcessGrid:
    """Return a grid with the given nodes, or one that hosts everybody."""
    nodes = contexts or (node(1),)
    return InProcessGrid(make_client_app(open_site), {context.node_id: context for context in nodes})


def one_client_a_node(open_site: OpenSite, ids: Sequence[int] = (11, 12, 13, 14, 15)) -> InProcessGrid:
    return grid_of(open_site, *(node(number, **{"partition-id": place}) for place, number in enumerate(ids)))


Reorder = Callable[[list[Any]], list[Any]]


class ReorderingGrid(InProcessGrid):
    """Hands replies out in another order than asked."""

    def __init__(self, grid: InProcessGrid, reorder: Reorder) -> None:
        super().__init__(grid.client_app, grid.contexts)
        self.reorder = reorder

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Any]:
        return self.reorder(list(super().send_and_receive(messages, timeout=timeout)))
