"""Distils the mixture of types into one adapter: it learns to continue prompts as the mixture does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedalign.contribution import WEIGHT, Contribution, State, weighted_delta
from fedalign.data.rankings import RankingShard
from fedalign.errors import UserError
from fedalign.methods.base import Artefacts, Memory
from fedalign.methods.local_training import LocalTraining, train
from fedalign.methods.mixture_policy import in_order
from fedalign.methods.mmra import MIXTURE, MixturePhase
from fedalign.methods.policy_writer import rows_of
from fedalign.methods.single_policy import Single, SinglePhase
from fedalign.methods.text_policies import AdapterPolicy, Writing, read_public_prompts
from fedalign.methods.type_adapters import AdapterTypes
from fedalign.methods.type_model import type_of
from fedalign.methods.type_rewards import client_prompts
from fedalign.metrics.record import MetricSum, encode
from fedalign.models.text import ResponseBatch
from fedalign.rng import Streams
from fedalign.template import Template

KEY = "method.single"
SINGLE = "single."
"""What names of the adapter's parameters begin with in a state."""


@dataclass(frozen=True)
class Distilled(Single):
    """Supervised fine-tuning of one adapter on what the mixture writes.

    The result costs no more than any one policy. Its regret is not linear in the mixture's weights: measure it anew.

    Parameters
    ----------
    rounds : int
        Of federated training; with public prompts, of as many steps each on the server.
    prompts : str or None
        A text file of public prompts, one a line, with which the server works alone; None takes the clients' own.
    client_prompts : int
        Prompts that a client has the mixture continue in a round, at most.
    writing : Writing
    batch : int
        Texts in a gradient step.
    local : LocalTraining
    """

    rounds: Annotated[int, Field(ge=0)]
    prompts: str | None
    client_prompts: Annotated[int, Field(ge=1)]
    writing: Writing
    batch: Annotated[int, Field(ge=1)]
    local: LocalTraining

    def phases(self, mixture: MixturePhase) -> list[DistilledPhase]:
        """Return the phase that trains the adapter."""
        return [DistilledPhase(self, mixture)]


class DistilledPhase(SinglePhase):
    """Trains one adapter, from that of the type with the most weight.

    Parameters
    ----------
    settings : Distilled
    mixture : MixturePhase
    """

    def __init__(self, settings: Distilled, mixture: MixturePhase) -> None:
        super().__init__(mixture)
        self.client_weight = mixture.client_weight
        if not isinstance(self.model, AdapterTypes):
            raise UserError(
                f"{KEY}=Distilled: types that are heads write nothing to learn from; set method/single=log_linear, or "
                "types that are adapters of a language model"
            )
        self._types: AdapterTypes = self.model
        self.settings = settings
        self.rounds = settings.rounds if settings.prompts is None else 0

    def initial(self, streams: Streams, artefacts: Artefacts) -> State:
        """Return the types, their mixture, and the adapter: as it begins, or with public prompts as it ends."""
        state = dict(self.mixed(streams, artefacts))
        state |= _named(type_of(state, int(state[MIXTURE].argmax())))
        if self.settings.prompts is None or self.mixture.name not in artefacts:
            return state
        prompts = read_public_prompts(Path(self.settings.prompts), f"{KEY}.prompts")
        memory: Memory = {}
        for number in range(1, self.settings.rounds + 1):
            self._learn(state, prompts, Streams(streams.seed, self.name, number), memory)
            state |= _named(self.model.trained())
        return state

    def template(self, state: State) -> Template:
        """Return a delta for every parameter of the adapter."""
        return Template.of_deltas({name: t for name, t in state.items() if name.startswith(SINGLE)})

    def local(self, state: State, shard: RankingShard, streams: Streams, memory: Memory) -> Contribution:
        """Have the mixture continue the client's prompts, train on that, and return the change."""
        if not len(shard.train):
            return Contribution({}, {WEIGHT: 0.0})
        prompts = client_prompts(shard, self.settings.client_prompts, streams.torch("prompts"))
        loss = self._learn(state, prompts, streams, memory)
        weight = 1.0 if self.method.weight == "uniform" else float(len(shard.train))
        change = weighted_delta(state, _named(self.model.trained()), weight)
        return Contribution(
            change.tensors, {**change.scalars, **encode([MetricSum("train/distillation_loss", "all", loss, 1.0)])}
        )

    def utilities(self, state: State, shard: RankingShard, index: Tensor) -> Tensor:
        """Return the adapter's implicit rewards, shape (n, S)."""
        self.model.load(_adapter(state))
        return self.model.utilities(shard, index).values

    def policy(self, state: State) -> AdapterPolicy:
        """Return the adapter as a policy."""
        return AdapterPolicy(self._types, _adapter(state))

    def export(self, state: State, directory: Path) -> None:
        """Write the adapter as peft reads it, to ``adapter``."""
        self.model.load(_adapter(state))
        self._types.policy.transformer.save_adapter(directory / "adapter")

    def _learn(self, state: State, prompts: Sequence[str], streams: Streams, memory: Memory) -> float:
        """Train the workspace from the state's adapter on what the mixture writes now; return the mean loss."""
        tokens = self._written(state, prompts, streams.torch("mixture"))
        generator = streams.torch("batches")

        def loss(step: int) -> Tensor:
            drawn = torch.randint(len(tokens.ids), (self.settings.batch,), generator=generator)
            rows = rows_of(tokens, drawn.to(tokens.ids.device))
            # Of whole texts: the divergence KL(mixture || adapter) but for a constant, in nats a token of the longest.
            return -self._types.writer.log_probability(rows, None).mean() / self.settings.writing.max_new_tokens

        steps = (self.settings.local.steps * (streams.round - 1), self.settings.local.steps * self.settings.rounds)
        with streams.torch_default("dropout"):
            self.model.network.train()
            mean = train(self.model.network, _adapter(state), loss, self.settings.local, *steps, memory)
        self.model.network.eval()
        return mean

    def _written(self, state: State, prompts: Sequence[str], generator: torch.Generator) -> ResponseBatch:
        mixture, writing = self.mixture.policy(state), self.settings.writing
        parts = [mixture.write(part, writing, generator) for part in writing.parts(prompts)]
        everything = torch.arange(sum(len(part.texts) for part in parts))
        return in_order(parts, everything, self._types.policy.pad_token).tokens


def _adapter(state: State) -> State:
    return {name.removeprefix(SINGLE): tensor for name, tensor in state.items() if name.startswith(SINGLE)}


def _named(parameters: State) -> State:
    return {SINGLE + name: tensor for name, tensor in parameters.items()}
