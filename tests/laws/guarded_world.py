"""A small federation under a guarantee, and clients, networks and phases that misbehave in it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flwr.app import Message
from flwr.serverapp import Grid
from torch import Tensor, nn

from fedalign.compression.base import NoCompression
from fedalign.config import parse, resolve
from fedalign.contribution import WEIGHT, Contribution, State
from fedalign.data.federated import Kind
from fedalign.engines.in_process import InProcessGrid
from fedalign.federation.account import Account
from fedalign.federation.client_app import make_client_app
from fedalign.federation.conductor import Conductor
from fedalign.federation.custodian import Custodian
from fedalign.federation.directory import ClientDirectory
from fedalign.federation.job import Federation, Job, Outcome
from fedalign.federation.population import Everybody
from fedalign.federation.records import decode_contribution
from fedalign.federation.sampling import FractionSampler, Sampler
from fedalign.federation.secure.settings import SecAgg
from fedalign.federation.server_optimizer import FedAvg
from fedalign.federation.shield import NORM_BIT
from fedalign.federation.site import Site
from fedalign.guarantee import custody_of
from fedalign.methods.base import Memory, Phase, Setting
from fedalign.methods.local_training import LocalTraining
from fedalign.methods.reward_heads import RewardHeadsMethod, RewardPhase
from fedalign.models.lora import trainable_state
from fedalign.privacy.adaptive_clipping import AdaptiveClip
from fedalign.privacy.client_level import ClientLevel
from fedalign.privacy.distributed import Skellam
from fedalign.privacy.dp_sgd import UnitLosses
from fedalign.privacy.local import DPSGD, LocalPrivacy
from fedalign.privacy.mechanism import Gaussian
from fedalign.privacy.metric_release import WithheldMetrics
from fedalign.privacy.noise import SeededNoise
from fedalign.privacy.protection import Protection
from fedalign.privacy.rounding import Rounding
from fedalign.rng import Streams
from tests.federation.toy import MEAN, VECTORS, Halfway, ToyData, node
from tests.methods.judgments import FEATURES

EVERYBODY = FractionSampler(1.0)
CLIP = ClientLevel(bound=1.0, phases={}, scales={}, weight_bound=1.0, adaptive=None)
CENTRAL = Protection(
    epsilon=None, delta=None, noise_multiplier=1.0, clip=CLIP, mechanism=Gaussian(), local=None, secure=None,
    metrics=WithheldMetrics(), randomness=SeededNoise(),
)  # fmt: skip
NOISELESS = replace(CENTRAL, noise_multiplier=0.0)
STRICT = replace(CENTRAL, delta=1e-3)
ADAPTIVE = replace(CENTRAL, clip=replace(CLIP, adaptive=AdaptiveClip(0.5, 0.2, 0.5)))
SECAGG = SecAgg(bits=64, fraction_bits=32, neighbours=4, threshold=0.6, minimum=2)
DISTRIBUTED = replace(CENTRAL, mechanism=Skellam(Rounding(0.01, 0.6)), secure=SECAGG)
LOCAL = replace(
    CENTRAL, delta=1e-5, clip=None, mechanism=None, local=DPSGD("example", clip=1.0, rate=0.25, grad_sample="loop")
)
TRAINING = LocalTraining(
    steps=40, optimizer="sgd", lr=0.1, schedule="constant", period=5, final_lr=0.1, optimizer_state="reset",
    proximal_mu=0.0, max_grad_norm=None,
)  # fmt: skip
WIDTH = 50_000
PLACE = Streams(5, "halfway", 1, "ada")


class Listening(InProcessGrid):
    """Keeps all replies."""

    def __init__(self, grid: InProcessGrid) -> None:
        super().__init__(grid.client_app, grid.contexts)
        self.heard: list[Message] = []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        replies = list(super().send_and_receive(messages, timeout=timeout))
        self.heard += replies
        return replies

    def told(self, kind: str) -> list[Contribution]:
        """Return what came in reply to messages of a kind."""
        return [decode_contribution(reply.content) for reply in self.heard if reply.metadata.message_type == kind]


@dataclass
class World:
    """A run of the toy federation under a guarantee."""

    privacy: Protection
    phases: Sequence[Phase[Any]] = field(default_factory=lambda: [Halfway(rounds=1)])
    sampler: Sampler = EVERYBODY
    folder: Path | None = None
    nodes: int = 1

    @property
    def federation(self) -> Federation:
        return Federation(1, self.sampler, FedAvg(1.0), MEAN, 1, 1, 9.0, 1.0, 1, 3, 100.0)

    def custody(self) -> Custodian:
        """Return what guards the run, as a run makes it."""
        method = SimpleNamespace(name="toy", kind=Kind.SURVEY, headline="train/closeness", selection="train/closeness")
        layout = SimpleNamespace(disjoint=False)
        config: Any = SimpleNamespace(
            privacy=self.privacy,
            method=method,
            federation=self.federation,
            seed=5,
            partition=layout,
            population=Everybody(),
            compression=NoCompression(),
        )
        journal = None if self.folder is None else self.folder / "ledger.json"
        made = custody_of(config, self.phases, journal, checked=False)
        assert isinstance(made, Custodian)
        return made

    def begun(self, clients: int | None = None) -> tuple[Custodian, Account]:
        """Return what guards the run with its account opened, for the toy's clients or a number of others."""
        names = sorted(VECTORS) if clients is None else [f"c{place}" for place in range(clients)]
        custodian = self.custody()
        custodian.begin(ClientDirectory(names, [], {}))
        assert custodian.account is not None
        return custodian, custodian.account

    def site(self) -> Site:
        return Site(5, torch.get_num_threads(), self.phases, ToyData(), self.privacy, self.custody().metrics)

    def grid(self) -> Listening:
        site = self.site()
        app = make_client_app(lambda config, node_config: site, self.folder and self.folder / "clients")
        places = [{"partition-id": n} for n in range(self.nodes)] if self.nodes > 1 else [{}]
        return Listening(InProcessGrid(app, {n: node(n, **place) for n, place in enumerate(places, 1)}))

    def run(self, resume: bool = False, grid: Grid | None = None) -> Outcome:
        assert self.folder is not None
        job = Job(
            "toy", "train/closeness", self.phases, self.federation, 5, "{}", self.nodes, self.folder, [], resume,
            self.custody(),
        )  # fmt: skip
        return Conductor(job, self.grid() if grid is None else grid).run()

    def moved(self) -> Tensor:
        """Return where the first phase's vector ends."""
        return self.run().artefacts[self.phases[0].name]["w"].double()


Maker = Callable[..., World]


@pytest.fixture
def world(tmp_path: Path) -> Maker:
    """Make worlds whose files lie below a folder of their own."""
    numbers = itertools.count()

    def make(*arguments: Any, **more: Any) -> World:
        made = World(*arguments, **more)
        made.folder = tmp_path / str(next(numbers))
        return made

    return make


class Wide(Halfway):
    """Repeats the clients' vectors, for statistics of the noise."""

    def initial(self, streams: Streams, artefacts: Mapping[str, State]) -> State:
        return {"w": torch.zeros(WIDTH, dtype=torch.float64)}

    def local(self, state: State, shard: tuple[str, Tensor], streams: Streams, memory: Memory) -> Contribution:
        return super().local(state, (shard[0], shard[1].repeat(WIDTH // 2)), streams, memory)


class FailsFirst(Halfway):
    """Nobody gets through the first round."""

    def local(self, state: State, shard: tuple[str, Tensor], streams: Streams, memory: Memory) -> Contribution:
        if streams.round == 1:
            raise ValueError("no power")
        return super().local(state, shard, streams, memory)


class Sends(Halfway):
    """Clients send what a test gives them; the state has more than is learnt."""

    def __init__(self, told: Mapping[str, Contribution]) -> None:
        super().__init__(rounds=1)
        self.told = told

    def initial(self, streams: Streams, artefacts: Mapping[str, State]) -> State:
        return {"w": torch.zeros(3), "matrix": torch.zeros(2, 2), "steps": torch.tensor(7)}

    def local(self, state: State, shard: tuple[str, Tensor], streams: Streams, memory: Memory) -> Contribution:
        memory["moments"] = torch.ones(3)
        return self.told[shard[0]]


class Noisy(Halfway):
    """Claims to have trained with noise of its own."""

    local_units = frozenset({"example"})
    local_steps = 4


def sending(values: Mapping[str, Tensor]) -> Sends:
    """Return a phase whose clients send a tensor of their own twice, as two deltas."""
    return Sends(
        {
            name: Contribution({"delta/w": value, "delta/matrix": value[0].expand(2, 2).clone()}, {WEIGHT: 1.0})
            for name, value in values.items()
        }
    )


class Rows(UnitLosses):
    """Squared errors of a network on rows; remembers who was asked for."""

    def __init__(self, network: nn.Module, units: int, inputs: int) -> None:
        self.network, self.data = network, torch.randn(units, inputs, generator=torch.Generator().manual_seed(1))
        self.asked: list[list[int]] = []

    @property
    def units(self) -> int:
        return len(self.data)

    def losses(self, chosen: Tensor, step: int) -> Tensor:
        self.asked.append(chosen.tolist())
        errors: Tensor = self.network(self.data[chosen]) - 1
        return errors.square().sum(1)


class Adapter(nn.Module):
    """A frozen matrix with two trained factors, as LoRA has them; cut off, they are part of nothing."""

    def __init__(self, connected: bool = True, frozen_a: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.base, self.a, self.b = (nn.Linear(*shape, bias=False) for shape in ((4, 3), (4, 2), (2, 3)))
        for layer in (self.base, self.a, self.b):
            layer.weight.data = torch.randn(layer.weight.shape, generator=generator)
        self.base.requires_grad_(False)
        self.a.requires_grad_(not frozen_a)
        self.connected = connected

    def forward(self, rows: Tensor) -> Tensor:
        kept, inner = self.base(rows), self.a(rows)
        result: Tensor = kept + self.b(inner) if self.connected else kept + inner.sum()
        return result


def start_of(network: nn.Module) -> State:
    """Return a copy of what is trained."""
    return {name: tensor.clone() for name, tensor in trainable_state(network).items()}


def noise_of(custodian: Custodian, phase: Halfway, number: int = 1, bits: float = 0.0) -> Tensor:
    """Return what a round adds to a sum of nothing but norm bits."""
    state = phase.initial(Streams(5), {})
    told = Contribution(scalars={NORM_BIT: bits})
    return custodian.release(phase, state, number, sorted(VECTORS), told).tensors["delta/w"]


@pytest.fixture(scope="module")
def reward() -> RewardPhase:
    """Return a shipped phase that trains on pairs, its network loaded."""
    small = ("model.body.width=8", "model.body.dropout=0", "model.width=8", "method.local.max_grad_norm=null")
    few = ("method.episodes.count=1", "method.episodes.min_context=2", "method.episodes.max_context=2")
    config = parse(resolve(["method=fedavg_bt", *small, *few, "method.episodes.targets=4"]))
    assert isinstance(config.method, RewardHeadsMethod)
    chosen = LocalPrivacy(DPSGD("user", 1.0, 1.0, "hooks"), 0.0, SeededNoise())
    (phase,) = config.method.phases(Setting(4, FEATURES, config.model, config.encoder, local_privacy=chosen))
    assert isinstance(phase, RewardPhase)
    phase.load(phase.initial(Streams(0), {}))
    return phase


def own_gradient(phase: RewardPhase, units: UnitLosses, unit: int) -> Tensor:
    """Return the gradient of one unit's loss, asked for together with all others."""
    loss = units.losses(torch.arange(units.units), 0)[unit]
    parameters = [p for p in phase.network.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
