"""The work that engines are compared on: federated averaging of a small classifier, and a bare PyTorch loop of it.

Every client has 50 rows and takes one epoch of plain SGD over them in stored order, five batches of ten; the server
adds the mean delta, weighted by rows.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedalign.config import parse, resolve
from fedalign.contribution import Contribution, StackedContribution, State, stacked_delta, weighted_delta
from fedalign.data.federated import ClientInfo, FederatedData, Role
from fedalign.federation.job import Job
from fedalign.federation.observer import Observer
from fedalign.federation.sampling import Sampler
from fedalign.federation.site import Site
from fedalign.methods.base import Artefacts, Memory, Phase
from fedalign.methods.local_training import LocalTraining, train
from fedalign.methods.stacked_training import train_stacked
from fedalign.models.stacked import Stack
from fedalign.privacy.scheme import Sampling, Scheme
from fedalign.rng import Streams
from scripts.benchmark_task import Federation

FEATURES, CLASSES, TOKENS = 64, 10, 16
ROWS, BATCH, RATE = 50, 10, 0.05
PHASE = "classifier"
_KEPT = 200


@dataclass(frozen=True)
class Work:
    """What is run; the same for every engine.

    Parameters
    ----------
    network : str
        One of `NETWORKS`.
    clients, cohort, rounds : int
    seed, threads : int
    """

    network: str
    clients: int = 100
    cohort: int = 20
    rounds: int = 50
    seed: int = 0
    threads: int = 1

    @property
    def name(self) -> str:
        """Name in tables."""
        return self.network

    @property
    def parameters(self) -> int:
        """Number of parameters of the network."""
        return sum(parameter.numel() for parameter in self.build().parameters())

    @property
    def updates(self) -> int:
        """Client-updates of a round."""
        return self.cohort

    def federation(self, engine: Sequence[str], place: Path, observers: Sequence[Observer]) -> Federation:
        """Return what an engine runs."""
        config = parse(resolve([*engine, f"engine.threads={self.threads}"]))
        never = self.rounds + 1
        settings = replace(
            config.federation, rounds=self.rounds, sampler=Planned(self), evaluate_every=never, checkpoint_every=never
        )
        job = Job(
            method=PHASE,
            selection="none",
            phases=[Classifier(self)],
            federation=settings,
            seed=self.seed,
            config=self.to_json(),
            nodes=config.engine.nodes(self.clients),
            checkpoints=place / "checkpoints",
            observers=observers,
            resume=False,
        )
        return Federation(config.engine, job, open_site, self.clients, PHASE)

    def bare(self, tick: Callable[[], None]) -> State:
        """Return the last weights of the bare loop."""
        return bare(self, tick)

    def to_json(self) -> str:
        """Return what nodes build the same work from."""
        return json.dumps(asdict(self))

    @staticmethod
    def of(text: str) -> Work:
        """Return the work that `to_json` wrote."""
        return Work(**json.loads(text))

    def build(self) -> nn.Module:
        """Return the network with its first weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return NETWORKS[self.network]()

    def schedule(self) -> list[list[int]]:
        """Return the clients of every round, in rising order."""
        generator = np.random.default_rng(self.seed + 1)
        draws = (generator.choice(self.clients, size=self.cohort, replace=False) for _ in range(self.rounds))
        return [sorted(draw.tolist()) for draw in draws]


class Perceptron(nn.Sequential):
    """Linear layers of the widths given, with SiLU between them.

    It costs what ReLU does and has no kink: where a ReLU's input is zero but for rounding, its gradient is there or
    not, and weights that agreed to eight digits differ by 1e-4 after that step.
    """

    stackable: ClassVar[bool] = True

    def __init__(self, *widths: int) -> None:
        layers: list[nn.Module] = []
        for size, following in zip((FEATURES, *widths), (*widths, CLASSES), strict=True):
            layers += [nn.Linear(size, following), nn.SiLU()]
        super().__init__(*layers[:-1])


class Block(nn.Module):
    """A pre-norm transformer block, 128 wide, with attention written out so that stacks of clients can be batched."""

    stackable: ClassVar[bool] = True

    def __init__(self, width: int = 128, heads: int = 4, inner: int = 256) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens after the block, shape (..., tokens, width)."""
        *rows, tokens, width = x.shape
        qkv = self.qkv(self.before(x)).reshape(*rows, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.transpose(-4, -2).unbind(-3)
        weights = ((q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5).softmax(-1)
        x = x + self.out((weights @ v).transpose(-3, -2).reshape(*rows, tokens, width))
        x = x + self.down(F.gelu(self.up(self.after(x))))
        return x


class Transformer(nn.Module):
    """Two blocks over 16 tokens of 64 features, and the mean of the tokens."""

    stackable: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(FEATURES, 128)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(128, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, shape (rows, CLASSES)."""
        x = self.inner(x)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x.mean(-2))
        return logits


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "2k": functools.partial(Perceptron, 32),
    "26k": functools.partial(Perceptron, 128, 128),
    "301k": functools.partial(Perceptron, 512, 512),
    "1M": functools.partial(Perceptron, 960, 960),
    "transformer": Transformer,
}

SETTINGS = LocalTraining(
    steps=ROWS // BATCH, optimizer="sgd", lr=RATE, schedule="constant", period=1, final_lr=1.0,
    optimizer_state="reset", proximal_mu=0.0, max_grad_norm=None,
)  # fmt: skip


@dataclass(frozen=True)
class Shard:
    """One client's rows: ``x`` of shape (ROWS, FEATURES) or (ROWS, TOKENS, FEATURES), and labels ``y`` (ROWS,)."""

    x: Tensor
    y: Tensor


class Rows(FederatedData):
    """Clients whose labels are drawn unevenly, and rows around the centres of their labels."""

    dropped: Mapping[str, int] = {}

    def __init__(self, work: Work) -> None:
        self._work = work
        self._clients = [ClientInfo(f"client-{number:05d}", Role.TRAIN) for number in range(work.clients)]
        centres = np.random.default_rng(work.seed).normal(size=(CLASSES, FEATURES))
        self._centres = centres.astype(np.float32)
        # Of a large population nothing is kept, as where data are read from a file when they are asked for.
        few = self._clients if work.clients <= _KEPT else []
        self._made = {info.name: self._make(info.name) for info in few}

    @property
    def clients(self) -> Sequence[ClientInfo]:
        """All clients."""
        return self._clients

    def shard(self, client: str) -> Shard:
        """Return a client's rows."""
        return self._made[client] if client in self._made else self._make(client)

    def _make(self, client: str) -> Shard:
        generator = np.random.default_rng([self._work.seed, int(client.removeprefix("client-"))])
        labels = generator.choice(CLASSES, size=ROWS, p=generator.dirichlet(np.full(CLASSES, 0.3)))
        centres = self._centres[labels]
        if self._work.network == "transformer":
            centres = np.repeat(centres[:, None, :], TOKENS, axis=1)
        x = centres + 1.5 * generator.normal(size=centres.shape).astype(np.float32)
        return Shard(torch.from_numpy(x.astype(np.float32)), torch.from_numpy(labels.astype(np.int64)))


class Classifier(Phase[Shard]):
    """Federated averaging of the network, by the loop of gradient steps that every method of fedalign uses."""

    name = PHASE
    evaluated = frozenset()

    def __init__(self, work: Work) -> None:
        self.rounds = work.rounds
        self._work = work
        self._network = work.build()

    def initial(self, streams: Streams, artefacts: Artefacts) -> State:
        """Return the first weights."""
        return {name: parameter.detach().clone() for name, parameter in self._work.build().named_parameters()}

    def local(self, state: State, shard: Shard, streams: Streams, memory: Memory) -> Contribution:
        """Return the weighted delta after one epoch."""

        def loss(step: int) -> Tensor:
            rows = slice(step * BATCH, (step + 1) * BATCH)
            return F.cross_entropy(self._network(shard.x[rows]), shard.y[rows])

        train(self._network, state, loss, SETTINGS, 0, SETTINGS.steps, memory)
        return weighted_delta(state, dict(self._network.named_parameters()), float(len(shard.x)))

    def stacked_size(self) -> int:
        """Return the network's size."""
        return sum(parameter.numel() for parameter in self._network.parameters())

    def local_many(
        self, state: State, shards: Sequence[Shard], streams: Sequence[Streams], memories: Sequence[Memory]
    ) -> StackedContribution:
        """Return the weighted deltas of several clients after one epoch of each."""
        x, y = torch.stack([shard.x for shard in shards]), torch.stack([shard.y for shard in shards])

        def losses(step: int) -> Tensor:
            rows = slice(step * BATCH, (step + 1) * BATCH)
            logits = self._stack.network(x[:, rows])
            return (
                F.cross_entropy(logits.flatten(0, 1), y[:, rows].flatten(), reduction="none").view(len(x), -1).mean(1)
            )

        outcome = train_stacked(self._stack, state, losses, SETTINGS, 0, SETTINGS.steps, memories)
        weights = [float(len(shard.x)) for shard in shards]
        own = [Contribution()] * len(shards)
        return stacked_delta(state, self._stack.parameters, weights, own, outcome.failures)

    @functools.cached_property
    def _stack(self) -> Stack:
        return Stack(self._network)

    def evaluate(self, state: State, shard: Shard, streams: Streams) -> Contribution:
        """Return nothing: the comparison is of training, and nobody is asked."""
        return Contribution()


class Planned(Sampler):
    """The clients of the work's schedule."""

    def __init__(self, work: Work) -> None:
        self._plan = work.schedule()

    def describe(self, clients: int) -> Sampling:
        """Return the scheme that the schedule was drawn by."""
        return Sampling(Scheme.FIXED_SIZE, clients, len(self._plan[0]))

    def sample(self, clients: Sequence[str], generator: np.random.Generator, number: int = 1) -> list[str]:
        """Return the cohort of a round."""
        return [clients[place] for place in self._plan[number - 1]]


@functools.lru_cache(maxsize=1)
def _site(config: str) -> Site:
    work = Work.of(config)
    return Site(work.seed, work.threads, [Classifier(work)], Rows(work))


def open_site(config: str, node_config: Mapping[str, Any]) -> Site:
    """Return the work's site; workers of all engines find it by its name."""
    return _site(config)


def bare(work: Work, tick: Callable[[], None]) -> State:
    """Train in plain PyTorch, one network and one loop without any framework, and return the last weights.

    Parameters
    ----------
    work : Work
    tick : callable
        Is called before the first round and after each.
    """
    network, data, plan = work.build(), Rows(work), work.schedule()
    clients = [client.name for client in data.clients]
    parameters: list[Tensor] = list(network.parameters())
    weights = [parameter.detach().clone() for parameter in parameters]
    tick()
    for cohort in plan:
        total = [torch.zeros_like(weight) for weight in weights]
        for place in cohort:
            shard = data.shard(clients[place])
            with torch.no_grad():
                torch._foreach_copy_(parameters, weights)
            optimizer = torch.optim.SGD(parameters, lr=RATE)
            for start in range(0, ROWS, BATCH):
                optimizer.zero_grad()
                rows = slice(start, start + BATCH)
                F.cross_entropy(network(shard.x[rows]), shard.y[rows]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            with torch.no_grad():
                torch._foreach_add_(total, torch._foreach_sub(parameters, weights), alpha=ROWS)
        weights = [weight + term / (ROWS * len(cohort)) for weight, term in zip(weights, total, strict=True)]
        tick()
    return dict(zip([name for name, _ in network.named_parameters()], weights, strict=True))
