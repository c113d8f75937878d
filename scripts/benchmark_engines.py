"""Time per client-update of one GPO federation: a bare PyTorch loop, and fedalign's engines on the same work.

The bare loop is what one would write by hand: it knows the network, the loss, the data and the random streams, and
nothing of federations, messages or engines. All of them must end with the same weights.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedalign.config import RunConfig, parse, resolve, to_json
from fedalign.contribution import State
from fedalign.data.progress import silent
from fedalign.data.schema import GroupJudgments
from fedalign.errors import UserError
from fedalign.federation.conductor import Job, Outcome
from fedalign.federation.observer import PhasePlan, RoundReport
from fedalign.federation.server_app import make_server_app
from fedalign.methods.pluralllm import GPOPhase, PluralLLM
from fedalign.methods.survey import points_of
from fedalign.objectives.gpo_nll import gpo_nll
from fedalign.report.atomic import write_json_atomic, write_text_atomic
from fedalign.report.environment import environment
from fedalign.report.metrics_log import MetricsLog
from fedalign.rng import Streams
from fedalign.site import open_site, setting

BARE = "bare"
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Work:
    """What is run; the same for every engine.

    Parameters
    ----------
    model : str
        Config of the network.
    clients, rounds : int
        Every client trains in every round. The last round is not timed, since engines evaluate after it.
    seed, threads : int
    workers : int
        Ray actors of the flower engine.
    """

    model: str
    clients: int
    rounds: int
    seed: int
    threads: int
    workers: int

    @property
    def timed_updates(self) -> int:
        """Client-updates between the end of the first evaluation and the start of the last round."""
        return self.clients * (self.rounds - 1)

    def resolve(self, engine: str) -> dict[str, Any]:
        """Return the resolved run configuration; the paper's method, features as wide as MiniLM's."""
        overrides = [
            *("method=pluralllm", "method.prior=none", "method.evaluation.draws=1", "method.evaluation.train=false"),
            *("method.weight=uniform", "method.loss_reduction=mean", "method.local.optimizer=adam"),
            *("method.local.optimizer_state=persist", "method.local.proximal_mu=0", "method.local.max_grad_norm=null"),
            *("data=synthetic_survey", f"data.groups={self.clients}", "partition=by_group", "partition.unseen=null"),
            *("encoder=hashing", "encoder.size=384", f"model={self.model}", f"seed={self.seed}"),
            *("federation=fedavg", f"federation.rounds={self.rounds}"),
            *(f"federation.{each}_every={self.rounds + 1}" for each in ("evaluate", "checkpoint")),
            *(f"engine={'in_process' if engine == BARE else engine}", f"engine.threads={self.threads}"),
        ]
        if engine == "flower":
            overrides.append(f"engine.workers={self.workers}")
        return resolve(overrides)


@dataclass
class Stopwatch:
    """Observer that notes the time when the engine is up and after every round, from round 0, the evaluation.

    Parameters
    ----------
    began, started : float
        When the engine was called, and when it had found its nodes.
    wall, cpu : list of float
        Wall and process time in seconds at the end of each round.
    """

    began: float = field(default_factory=time.perf_counter)
    started: float = 0.0
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def run_started(self, plan: Sequence[PhasePlan], resumed_after: tuple[str, int] | None) -> None:
        """Note that the engine is up."""
        self.started = time.perf_counter()

    def round_ended(self, report: RoundReport | None) -> None:
        """Note the end of a round."""
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())

    def run_ended(self) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class Measurement:
    """One engine's run.

    Parameters
    ----------
    engine : str
    wall_ms, cpu_ms : float
        Per client-update; ``cpu_ms`` counts this process alone.
    start_s : float
        From the call to the first message.
    weights : State
    """

    engine: str
    wall_ms: float
    cpu_ms: float
    start_s: float
    weights: State

    @staticmethod
    def of(engine: str, work: Work, clock: Stopwatch, weights: State) -> Measurement:
        """Read the stopwatch from the end of round 0 to the end of the last round but one."""
        wall, cpu = (1e3 * (times[-2] - times[0]) / work.timed_updates for times in (clock.wall, clock.cpu))
        return Measurement(engine, wall, cpu, clock.started - clock.began, weights)


def measure(engine: str, work: Work) -> Measurement:
    """Run the work on an engine, or in the bare loop."""
    resolved = work.resolve(engine)
    config = parse(resolved)
    torch.set_num_threads(work.threads)
    clock, weights = run_bare(config) if engine == BARE else run_engine(config, resolved)
    return Measurement.of(engine, work, clock, weights)


def run_engine(config: RunConfig, resolved: Mapping[str, Any]) -> tuple[Stopwatch, State]:
    """Run the federation as ``fedalign run`` does, metrics.jsonl included, and return its times and final weights."""
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        clients = len(open_site(to_json(resolved), {}).data.clients)
        log, clock = MetricsLog(Path(folder) / "metrics.jsonl"), Stopwatch()
        job = Job(
            method=config.method.name,
            selection=config.method.selection,
            phases=config.method.phases(setting(config)),
            federation=config.federation,
            seed=config.seed,
            config=to_json(resolved),
            nodes=config.engine.nodes(clients),
            checkpoints=Path(folder) / "checkpoints",
            observers=[log, clock],
            resume=False,
        )
        try:
            server = make_server_app(lambda _: job, outcomes.append)
            config.engine.run(server, open_site, clients, Path(folder) / "clients")
        finally:
            log.run_ended()
    return clock, outcomes[0].artefacts[GPOPhase.name]


def run_bare(config: RunConfig) -> tuple[Stopwatch, State]:
    """Run the same training in plain PyTorch: one network, one Adam a client, and the mean of the deltas."""
    method = config.method
    assert isinstance(method, PluralLLM)
    local, rounds = method.local, config.federation.rounds
    data = config.data.federate(config.partition, config.encoder, Streams(config.seed), None, silent)
    shards = [data.shard(client.name) for client in data.clients]
    clock = Stopwatch()
    with Streams(config.seed).torch_default("gpo/initial"):
        network = config.model.build(config.encoder.dim, 0)
    parameters = list(network.parameters())
    optimizers = [torch.optim.Adam(parameters, lr=local.lr, fused=True) for _ in shards]
    weights = [parameter.detach().clone() for parameter in parameters]
    clock.started = time.perf_counter()
    clock.round_ended(None)
    for number in range(1, rounds + 1):
        deltas = [torch.zeros_like(weight, dtype=torch.float64) for weight in weights]
        for shard, optimizer in zip(shards, optimizers, strict=True):
            _assign(parameters, weights)
            generator = Streams(config.seed, GPOPhase.name, number, shard.client).torch("episodes")
            for step in range(local.steps):
                place = local.steps * (number - 1) + step
                optimizer.param_groups[0]["lr"] = local.learning_rate(place, local.steps * rounds)
                optimizer.zero_grad()
                context, target = method.episode.draw(shard.groups[0].train, generator)
                _loss(network, shard.groups[0], context, target).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            for delta, parameter, weight in zip(deltas, parameters, weights, strict=True):
                delta.add_(parameter.detach() - weight)
        weights = [(w.double() + delta / len(shards)).float() for w, delta in zip(weights, deltas, strict=True)]
        clock.round_ended(None)
    names = [name for name, _ in network.named_parameters()]
    return clock, dict(zip(names, weights, strict=True))


@torch.no_grad()
def _assign(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def _loss(network: nn.Module, judgments: GroupJudgments, context: Tensor, target: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of the target points given the context points."""
    seen, hidden = points_of(judgments, context), points_of(judgments, target)
    shares = torch.cat([judgments.shares[seen.index], torch.zeros(len(hidden.index))])
    tokens = torch.cat([judgments.features[torch.cat([seen.index, hidden.index])], shares[:, None]], 1)
    mean, log_std = network(tokens, len(seen.index))
    return gpo_nll(mean, log_std, judgments.shares[hidden.index], hidden.segments, hidden.questions).mean()


def difference(weights: State, reference: State) -> float:
    """Return the largest absolute difference between two sets of weights with the same names."""
    if weights.keys() != reference.keys():
        raise ValueError(f"weights {sorted(weights)} are not {sorted(reference)}")
    return max(float((weights[name] - reference[name]).abs().max()) for name in reference)
