"""Guarantees on a federation that can be followed by hand: settings with usual values, and runs of milliseconds."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedalign.compression.base import Compression, NoCompression
from fedalign.contribution import Contribution, State
from fedalign.data.federated import ClientInfo, FederatedData, Role
from fedalign.engines.in_process import InProcessGrid
from fedalign.federation.account import Account
from fedalign.federation.client_app import make_client_app
from fedalign.federation.conductor import Conductor
from fedalign.federation.custodian import Custodian
from fedalign.federation.directory import ClientDirectory
from fedalign.federation.exchange import StreamingGrid
from fedalign.federation.exposure import exposure_of
from fedalign.federation.job import Federation, Job, Outcome
from fedalign.federation.observer import PhasePlan, RoundReport
from fedalign.federation.payload import reply_bytes
from fedalign.federation.population import Everybody, Population
from fedalign.federation.sampling import FractionSampler, Sampler
from fedalign.federation.secure.settings import SecAgg
from fedalign.federation.server_optimizer import FedAvg
from fedalign.federation.site import Site
from fedalign.methods.base import Artefacts, Memory, Phase
from fedalign.metrics.record import MetricSum, encode
from fedalign.privacy.client_level import ClientLevel
from fedalign.privacy.mechanism import Gaussian
from fedalign.privacy.metric_release import OpenMetrics, WithheldMetrics
from fedalign.privacy.noise import SeededNoise
from fedalign.privacy.protection import Protection
from fedalign.rng import Streams

from .toy import MEAN

SEED = 5
CLIP = ClientLevel(1.0, {}, {}, 1.0, None)
SECAGG = SecAgg(64, 32, 20, 0.6, 3)
EVERYBODY = FractionSampler(1.0)
CLIENTS = tuple("abcdef")
USUAL: dict[str, Any] = {
    "epsilon": None,
    "delta": None,
    "noise_multiplier": 1.0,
    "clip": CLIP,
    "mechanism": Gaussian(),
    "local": None,
    "secure": None,
    "metrics": OpenMetrics(),
    "randomness": SeededNoise(),
}
PLAIN_SUM: dict[str, Any] = {"noise_multiplier": None, "clip": None, "mechanism": None}


def protection(**changes: Any) -> Protection:
    """Return the guarantee of ``privacy=central`` with noise from the seed, and changes."""
    return Protection(**{**USUAL, **changes})


def secure_sum(**changes: Any) -> Protection:
    """Return a secure sum without noise, and changes."""
    return protection(**{**PLAIN_SUM, "secure": SECAGG, "metrics": WithheldMetrics(), **changes})


class Crowd(FederatedData):
    """Training clients whose shards are their names."""

    dropped: Mapping[str, int] = {}

    def __init__(self, names: Sequence[str] = CLIENTS, stages: Mapping[str, tuple[str, ...]] | None = None) -> None:
        self.names, self.stages = names, stages or {}

    @property
    def clients(self) -> list[ClientInfo]:
        return [ClientInfo(name, Role.TRAIN, self.stages.get(name, ())) for name in self.names]

    def shard(self, client: str) -> str:
        return client


def vector_of(client: str, size: int) -> Tensor:
    """Return what a client pulls towards: a number of its own in every coordinate, of norm 3."""
    return torch.from_numpy(3 * unit(client, size))


def unit(client: str, size: int) -> np.ndarray:
    """Return a client's own direction."""
    drawn = Streams(1, client=client).numpy("vector").standard_normal(size)
    return drawn / np.linalg.norm(drawn)


class Pull(Phase[str]):
    """Every client adds its vector, or what ``tell`` makes of it."""

    name = "pull"

    def __init__(
        self,
        rounds: int = 3,
        size: int = 8,
        tell: Callable[[str, Contribution], Contribution] = lambda client, told: told,
    ) -> None:
        self.rounds, self.size, self.tell = rounds, size, tell
        self.trained: list[tuple[int, str]] = []

    def initial(self, streams: Streams, artefacts: Artefacts) -> State:
        return {"w": torch.zeros(self.size, dtype=torch.float64)}

    def local(self, state: State, shard: str, streams: Streams, memory: Memory) -> Contribution:
        self.trained.append((streams.round, shard))
        told = Contribution(
            {"delta/w": 2 * (vector_of(shard, self.size) - state["w"])},
            {"weight": 2.0, **encode([MetricSum("train/loss", shard, 0.5, 1.0)])},
        )
        return self.tell(shard, told)

    def evaluate(self, state: State, shard: str, streams: Streams) -> Contribution:
        distance = float((vector_of(shard, self.size) - state["w"]).norm())
        return Contribution(scalars=encode([MetricSum("train/closeness", shard, 1 / (1 + distance), 1.0)]))


class Push(Pull):
    """A second phase, which goes on from the first."""

    name = "push"

    def initial(self, streams: Streams, artefacts: Artefacts) -> State:
        return {"w": artefacts["pull"]["w"]} if "pull" in artefacts else super().initial(streams, artefacts)


def custodian(
    privacy: Protection,
    phases: Sequence[Phase[Any]] = (),
    sampler: Sampler = EVERYBODY,
    metrics: Sequence[str] = (),
    evaluations: int = 0,
    journal: Path | None = None,
) -> Custodian:
    """Return a custodian that opens its account when it knows the clients."""
    guarded = phases or [Pull()]

    def open_account(directory: ClientDirectory) -> Account | None:
        if not privacy.private:
            return None
        exposures = [
            exposure_of(p, _size(p), sampler, directory.training_for(p.stage), SEED, privacy)
            for p in guarded
            if p.rounds
        ]
        return Account(privacy, exposures, evaluations, len(metrics), journal, len(directory.training))

    return Custodian(privacy, metrics, open_account, SEED)


def opened(privacy: Protection, clients: Sequence[str] = CLIENTS, **changes: Any) -> Custodian:
    """Return a custodian that has begun."""
    keeper = custodian(privacy, **changes)
    keeper.begin(ClientDirectory(list(clients), [], dict.fromkeys(clients, 1)))
    return keeper


def _size(phase: Phase[Any]) -> int:
    template = phase.template(phase.initial(Streams(SEED, phase.name), {}))
    return 0 if template is None else template.size


@dataclass
class Listener:
    """Keeps what it hears."""

    rounds: list[RoundReport] = field(default_factory=list)

    def run_started(self, plan: Sequence[PhasePlan], resumed_after: tuple[str, int] | None) -> None:
        """Forget nothing."""

    def round_ended(self, report: RoundReport) -> None:
        self.rounds.append(report)

    def run_ended(self) -> None:
        """Do nothing."""

    def scopes(self, name: str) -> list[tuple[str, int, str]]:
        """Return phase, round and scope of every value of a metric over all clients."""
        return [
            (m.phase, m.round, m.scope) for r in self.rounds for m in r.metrics if (m.name, m.group) == (name, None)
        ]


@dataclass
class Guarded:
    """A run under a guarantee, on one node or one a client."""

    folder: Path
    privacy: Protection
    phases: Sequence[Pull] = field(default_factory=lambda: [Pull()])
    sampler: Sampler = EVERYBODY
    clients: Sequence[str] = CLIENTS
    stages: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    metrics: Sequence[str] = ()
    evaluate_every: int = 1
    checkpoint_every: int = 1
    separate: bool = False
    wrap: Callable[[Grid], Grid] = lambda grid: grid
    listener: Listener = field(default_factory=Listener)
    compression: Compression = field(default_factory=NoCompression)
    population: Population = field(default_factory=Everybody)

    @property
    def journal(self) -> Path:
        return self.folder / "privacy.json"

    def site(self, config: str, node_config: Mapping[str, Any]) -> Site:
        return Site(
            SEED, torch.get_num_threads(), self.phases, Crowd(self.clients, self.stages), self.privacy, self.metrics,
            compression=self.compression,
        )  # fmt: skip

    def grid(self) -> InProcessGrid:
        places = {100 - place: {"partition-id": place} for place in range(len(self.clients))}
        nodes: dict[int, dict[str, Any]] = places if self.separate else {1: {}}
        contexts = {number: Context(1, number, config, RecordDict(), {}) for number, config in nodes.items()}
        return InProcessGrid(make_client_app(self.site, self.folder / "clients"), contexts)

    def run(self, resume: bool = False) -> Outcome:
        every = self.evaluate_every
        evaluations = sum(1 + p.rounds // every + (p.rounds % every > 0) for p in self.phases)
        self.keeper = custodian(self.privacy, self.phases, self.sampler, self.metrics, evaluations, self.journal)
        federation = Federation(9, self.sampler, FedAvg(1.0), MEAN, every, self.checkpoint_every, 9.0, 1.0, 1, 3, 100.0)
        nodes = len(self.clients) if self.separate else 1
        job = Job(
            "toy", "train/closeness", self.phases, federation, SEED, "{}", nodes, self.folder, [self.listener], resume,
            self.keeper, self.population,
            functools.partial(reply_bytes, compression=self.compression, privacy=self.privacy),
        )  # fmt: skip
        return Conductor(job, self.wrap(self.grid())).run()


class Killed(BaseException):
    """Nothing catches it, as nothing catches a power cut."""


def killed_at(number: int, what: str = "release") -> Callable[..., Any]:
    """Return a substitute for a method of Custodian that dies in a round before it does anything."""
    done = getattr(Custodian, what)
    place = {"release": 2, "release_metrics": 1}[what]

    def dies(self: Custodian, *arguments: Any) -> Any:
        if arguments[place] == number:
            raise Killed
        return done(self, *arguments)

    return dies


class Lossy(StreamingGrid):
    """Delivers through another grid, and loses what ``loses`` says; keeps every reply that got through."""

    def __init__(self, grid: Grid, loses: Callable[[Message], bool] = lambda message: False) -> None:
        self.inner, self.loses = grid, loses
        self.replies: list[Message] = []
        self.sent: list[Message] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def set_run(self, run: Any) -> None:
        self.inner.set_run(run)

    @property
    def run(self) -> Any:
        return self.inner.run

    def create_message(self, *arguments: Any, **named: Any) -> Message:
        return self.inner.create_message(*arguments, **named)

    def get_node_ids(self) -> Any:
        return self.inner.get_node_ids()

    def push_messages(self, messages: Any) -> Any:
        return self.inner.push_messages(messages)

    def pull_messages(self, message_ids: Any) -> Any:
        return self.inner.pull_messages(message_ids)

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Message]:
        given = [message for message in messages if not self.loses(message)]
        self.sent += given
        replies = list(self.inner.send_and_receive(given, timeout=timeout))
        self.replies += replies
        return replies
