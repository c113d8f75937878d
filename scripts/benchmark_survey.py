"""Group preferences as work for engines: one GPO federation, and a bare PyTorch loop of it.

The bare loop is what one would write by hand: it knows the network, the loss, the data and the random streams, and
nothing of federations, messages or engines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fedalign.config import parse, resolve
from fedalign.contribution import State
from fedalign.data.progress import silent
from fedalign.data.schema import GroupJudgments
from fedalign.federation.observer import Observer
from fedalign.methods.pluralllm import GPOPhase, PluralLLM
from fedalign.methods.survey import points_of
from fedalign.models.gpo import GPOModel
from fedalign.objectives.gpo_nll import gpo_nll
from fedalign.rng import Streams
from scripts.benchmark_task import Federation, configured


@dataclass(frozen=True)
class Survey:
    """Adam on group-preference networks, six steps a client-update; every client trains in every round.

    Parameters
    ----------
    model : str
        Config of the network.
    clients, rounds, seed, threads : int
    """

    model: str
    clients: int = 8
    rounds: int = 5
    seed: int = 0
    threads: int = 1

    @property
    def name(self) -> str:
        """Name in tables."""
        return self.model

    @property
    def parameters(self) -> int:
        """Number of parameters of the network."""
        config = parse(resolve([*self.overrides(), "engine=in_process"]))
        assert isinstance(config.model, GPOModel)
        return sum(parameter.numel() for parameter in config.model.build(config.encoder.dim, 0).parameters())

    @property
    def updates(self) -> int:
        """Client-updates of a round."""
        return self.clients

    def overrides(self) -> list[str]:
        """Return the configuration: the paper's method, one group a client, features as wide as MiniLM's."""
        return [
            *("method=pluralllm", "method.prior=none", "method.weight=uniform", "method.loss_reduction=mean"),
            *("method.local.optimizer=adam", "method.local.optimizer_state=persist"),
            *("method.local.proximal_mu=0", "method.local.max_grad_norm=null"),
            *("method.evaluation.draws=1", "method.evaluation.train=false"),
            *("data=synthetic_survey", f"data.groups={self.clients}", "partition=by_group", "partition.unseen=null"),
            *("encoder=hashing", "encoder.size=384", f"model={self.model}", f"seed={self.seed}"),
            *("federation=fedavg", f"federation.rounds={self.rounds}"),
            *(f"federation.{kind}_every={self.rounds + 1}" for kind in ("evaluate", "checkpoint")),
        ]

    def federation(self, engine: Sequence[str], place: Path, observers: Sequence[Observer]) -> Federation:
        """Return what an engine runs."""
        return configured([*self.overrides(), *engine], place, observers, GPOPhase.name)

    def bare(self, tick: Callable[[], None]) -> State:
        """Train in plain PyTorch, one network, one Adam a client, and the mean of the deltas; return the last weights.

        ``tick`` is called before the first round and after each.
        """
        config = parse(resolve([*self.overrides(), "engine=in_process"]))
        method, seed, rounds = config.method, config.seed, config.federation.rounds
        assert isinstance(method, PluralLLM)
        assert isinstance(config.model, GPOModel)
        data = config.data.federate(config.partition, config.encoder, Streams(seed), None, silent)
        shards = [data.shard(client.name) for client in data.clients]
        with Streams(seed).torch_default("gpo/initial"):
            network = config.model.build(config.encoder.dim, 0)
        parameters = list(network.parameters())
        optimizers = [torch.optim.Adam(parameters, fused=True) for _ in shards]
        weights = [parameter.detach().clone() for parameter in parameters]
        tick()
        for number in range(1, rounds + 1):
            deltas = [torch.zeros_like(weight, dtype=torch.float64) for weight in weights]
            for shard, optimizer in zip(shards, optimizers, strict=True):
                generator = Streams(seed, GPOPhase.name, number, shard.client).torch("episodes")
                _assign(parameters, weights)
                _train(network, optimizer, shard.groups[0], method, generator, number, rounds)
                for delta, parameter, weight in zip(deltas, parameters, weights, strict=True):
                    delta.add_(parameter.detach() - weight)
            weights = [(w.double() + delta / len(shards)).float() for w, delta in zip(weights, deltas, strict=True)]
            tick()
        return dict(zip([name for name, _ in network.named_parameters()], weights, strict=True))


@torch.no_grad()
def _assign(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def _train(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    judgments: GroupJudgments,
    method: PluralLLM,
    generator: torch.Generator,
    number: int,
    rounds: int,
) -> None:
    """Take one client's steps of round ``number``."""
    local = method.local
    for step in range(local.steps * (number - 1), local.steps * number):
        optimizer.param_groups[0]["lr"] = local.learning_rate(step, local.steps * rounds)
        optimizer.zero_grad()
        context, target = method.episode.draw(judgments.train, generator)
        _loss(network, judgments, context, target).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def _loss(network: nn.Module, judgments: GroupJudgments, context: Tensor, target: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of the target points given the context points."""
    seen, hidden = points_of(judgments, context), points_of(judgments, target)
    shares = torch.cat([judgments.shares[seen.index], torch.zeros(len(hidden.index))])
    tokens = torch.cat([judgments.features[torch.cat([seen.index, hidden.index])], shares[:, None]], 1)
    mean, log_std = network(tokens, len(seen.index))
    return gpo_nll(mean, log_std, judgments.shares[hidden.index], hidden.segments, hidden.questions).mean()
