"""Experts that the run trains itself, federated: for each side an adapter, from texts that state that side alone."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field

from fedalign.contribution import DELTA, WEIGHT, Contribution, State
from fedalign.data.corpus import CorpusShard, Example
from fedalign.methods.base import Artefacts, Memory, ServerOptimizer, Setting
from fedalign.methods.corpus import Batches, CorpusPhase, Stage
from fedalign.methods.expert_adapters import (
    Adapters,
    AdapterWorkspace,
    LoraSource,
    adapter_of,
    fresh_adapter,
    language_model,
    named_adapters,
    prefix_of,
)
from fedalign.methods.expert_loss import ExpertLoss, TextReader
from fedalign.methods.expert_source import KEY
from fedalign.methods.local_training import LocalTraining, train, trainable
from fedalign.methods.memory_part import MemoryPart
from fedalign.methods.stated_preference import Preferences
from fedalign.methods.text_units import RowLosses
from fedalign.metrics.record import MetricSum, encode
from fedalign.models.experts import Experts
from fedalign.models.language_model import LanguageModelSpec
from fedalign.privacy.local import Unit
from fedalign.rng import Streams
from fedalign.template import Template

if TYPE_CHECKING:
    from fedalign.methods.pcm import PCM

_log = logging.getLogger(__name__)

COUNTS = "experts/clients"
"""Name of a sum: how many clients trained each side, shape (n,)."""


@dataclass(frozen=True)
class TrainedExperts(LoraSource):
    """LoRA adapters of the run's model.

    Parameters
    ----------
    rounds : int or None
        None takes ``federation.rounds``.
    batch : int
        Examples of a side in a gradient step, at most.
    loss : ExpertLoss
    least_mass : float
        What a side's mean change is divided by, at least, in clients.
    local : LocalTraining
        Of every side that a client has texts of.
    """

    rounds: Annotated[int, Field(ge=0)] | None
    batch: Annotated[int, Field(ge=1)]
    loss: ExpertLoss
    least_mass: Annotated[float, Field(gt=0)]
    local: LocalTraining

    def phases(self, method: PCM, setting: Setting) -> Sequence[ExpertsPhase]:
        """Return the phase that trains them."""
        return [ExpertsPhase(method, self, setting)]

    def state(self, names: Sequence[str], streams: Streams, artefacts: Artefacts, setting: Setting) -> State:
        """Return the adapters as training left them, or fresh ones where there was none yet."""
        trained = artefacts.get(ExpertsPhase.name)
        if trained is None:
            return named_adapters(names, fresh_adapter(language_model(setting), streams))
        return {name: tensor for side in names for name, tensor in trained.items() if name.startswith(prefix_of(side))}

    def load(self, experts: Experts, state: State) -> bool:
        """Put a state's adapters into what :meth:`open` returned."""
        assert isinstance(experts, AdapterWorkspace)
        return experts.take(_adapters(experts.names, state, experts.spec))

    def adapters(self, names: Sequence[str], state: State, setting: Setting) -> Adapters:
        """Return a state's adapters."""
        return _adapters(names, state, language_model(setting))


class ExpertsPhase(CorpusPhase):
    """Trains every side's adapter where texts state that side and no other.

    All sides begin at the same fresh adapter. A client's sum is the change of each side that it has texts of, and how
    many clients that is, 1 or 0, side by side: what a side moves by is the mean over those who trained it.

    Parameters
    ----------
    method : PCM
    experts : TrainedExperts
    setting : Setting
    """

    name = "experts"
    # The change of every side would have to be noisy, also of those that a client has no text of.
    local_units: frozenset[Unit] = frozenset()
    bounded_metrics = frozenset()

    def __init__(self, method: PCM, experts: TrainedExperts, setting: Setting) -> None:
        stage = Stage(experts.rounds, experts.batch, 1, experts.local)
        super().__init__(stage, KEY, method.lengths, setting)
        self.stage = experts.loss.stage
        self.experts, self.evaluation = experts, method.evaluation
        self.preferences = Preferences(method.dimensions)
        self.sides = self.preferences.names
        self.network.head.requires_grad_(False)
        self.reader = TextReader(self.network.policy, self.codec, method.lengths)

    def check(self, shard: CorpusShard) -> None:
        """Refuse statements that name no side that there is."""
        assert self.stage is not None
        for example in (*shard.stages.get(self.stage, ()), *shard.test):
            self.preferences.vector(example.group, f"client {shard.client!r}, preference")

    def own(self, shard: CorpusShard) -> Sequence[Example]:
        """Return the examples of the stage that state a single side."""
        assert self.stage is not None
        return [example for example in shard.stages.get(self.stage, ()) if self.side_of(example) is not None]

    def side_of(self, example: Example) -> str | None:
        """Return the side that an example states, if it is one alone."""
        wanted = self.preferences.vector(example.group, "preference").nonzero()[:, 0].tolist()
        return self.sides[wanted[0]] if len(wanted) == 1 else None

    def by_side(self, examples: Sequence[Example]) -> dict[str, list[Example]]:
        """Return the examples that state a single side, by that side in the order of all; none is empty."""
        sides = [self.side_of(example) for example in examples]
        found = {side: [e for e, own in zip(examples, sides, strict=True) if own == side] for side in self.sides}
        return {side: own for side, own in found.items() if own}

    def initial(self, streams: Streams, artefacts: Artefacts) -> State:
        """Return the same fresh adapter for every side."""
        return named_adapters(self.sides, fresh_adapter(self._spec, streams))

    def template(self, state: State) -> Template:
        """Return a delta for every side's every trained tensor, and the number of clients by side."""
        trained = trainable(self.network)
        everything = {prefix_of(side) + name: tensor for side in self.sides for name, tensor in trained.items()}
        return Template.of_deltas(everything) | Template({COUNTS: (len(self.sides),)})

    def row_losses(self, state: State) -> RowLosses:
        """Return what is minimised at the network's present parameters."""
        return lambda examples, seeds: self.experts.loss.rows(self.reader, examples)

    def local(self, state: State, shard: CorpusShard, streams: Streams, memory: Memory) -> Contribution:
        """Train the adapter of every side that the client has texts of; return the changes, and of which sides."""
        tensors: State = {COUNTS: torch.zeros(len(self.sides))}
        losses = []
        for side, examples in self.by_side(self.own(shard)).items():
            change, loss = self._train_side(adapter_of(state, side), side, examples, streams, memory)
            tensors |= {DELTA + prefix_of(side) + name: tensor for name, tensor in change.items()}
            tensors[COUNTS][self.sides.index(side)] = 1.0
            losses.append(MetricSum("train/loss", side, loss, 1.0))
        return Contribution(tensors, {WEIGHT: 1.0, **encode(losses)})

    def update(self, state: State, total: Contribution, optimizer: ServerOptimizer) -> State:
        """Return the state after a round: each side moves along the mean of those who trained it."""
        mean: State = {}
        for side, count in zip(self.sides, total.tensors[COUNTS].double().tolist(), strict=True):
            # A side that nobody trained stays where it is, also where sums have a place for everything.
            if count > 0:
                mass = max(count, self.experts.least_mass)
                prefix = DELTA + prefix_of(side)
                own = {name: tensor for name, tensor in total.tensors.items() if name.startswith(prefix)}
                mean |= {name.removeprefix(DELTA): tensor.double() / mass for name, tensor in own.items()}
        return optimizer.step(state, mean)

    def untrained(self, state: State) -> list[str]:
        """Return the sides whose adapter still changes nothing."""
        return [side for side in self.sides if not _changes(adapter_of(state, side))]

    def report(self, state: State) -> Mapping[str, float]:
        """Return how many experts nobody has trained."""
        return {"train/untrained_experts": float(len(self.untrained(state)))}

    @torch.no_grad()
    def evaluate(self, state: State, shard: CorpusShard, streams: Streams) -> Contribution:
        """Return how likely test texts that state a single side are, under that side's expert and under the base."""
        sums: list[MetricSum] = []
        alone = [example for example in shard.test if self.side_of(example) is not None]
        for side, examples in self.by_side(alone[: self.evaluation.prompts]).items():
            self.load(adapter_of(state, side))
            for start in range(0, len(examples), self.evaluation.batch):
                sums += self._foretold(side, examples[start : start + self.evaluation.batch])
        return Contribution(scalars=encode(sums))

    def export(self, state: State, directory: Path) -> None:
        """Write each expert's adapter as peft reads it, to ``experts/<side>``; say which were never trained."""
        for side in self.sides:
            self.load(adapter_of(state, side))
            self.network.policy.transformer.save_adapter(directory / "experts" / side)
        if missing := self.untrained(state):
            _log.warning(
                "experts that nobody trained: %s; no client has texts of stage %s that state one of them alone",
                ", ".join(missing),
                self.stage,
            )

    def _train_side(
        self, start: State, side: str, examples: Sequence[Example], streams: Streams, memory: Memory
    ) -> tuple[State, float]:
        """Return a side's change on the client's texts, and the mean loss."""
        self.load(start)
        device, own = self.network.policy.device, trainable(self.network)
        steps = (self.local_steps * (streams.round - 1), self.local_steps * self.rounds)
        batches = Batches(examples, self.settings.batch, streams.torch(f"batches/{side}"))
        with streams.torch_default(f"dropout/{side}"):
            self.network.train()
            begun = {name: start[name].to(device) for name in own}
            loss = self.step_loss(start, batches, [])
            mean = train(self.network, begun, loss, self.settings.local, *steps, MemoryPart(memory, f"{side}/"))
        self.network.eval()
        return {name: tensor.detach().cpu() - start[name] for name, tensor in own.items()}, mean

    def _foretold(self, side: str, examples: Sequence[Example]) -> list[MetricSum]:
        """Return negative log-likelihoods of responses under the loaded expert and the base, in nats a token."""
        tokens = self.reader.encode([e.prompt for e in examples], [e.response for e in examples])
        count = float(tokens.response_mask.sum())
        found = {"test_nll": self.reader.log_probability(tokens), "test_nll_base": self.reader.reference(tokens)}
        return [MetricSum(f"unseen/{name}", side, -float(value.double().sum()), count) for name, value in found.items()]


def _adapters(names: Sequence[str], state: State, spec: LanguageModelSpec) -> Adapters:
    return Adapters([adapter_of(state, side) for side in names], [spec.alpha / spec.rank] * len(names))


def _changes(adapter: State) -> bool:
    return any(bool(tensor.any()) for name, tensor in adapter.items() if ".lora_B." in name)
