"""The control model's phase: federated training of token-wise weights over frozen experts."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from fedalign.contribution import WEIGHT, Contribution, State, weighted_delta
from fedalign.data.corpus import CorpusShard, Example
from fedalign.methods.base import Artefacts, Memory, ServerOptimizer, Setting
from fedalign.methods.control_learning import Learning, Offline, Online, Round
from fedalign.methods.control_texts import ControlTexts
from fedalign.methods.local_training import LocalTraining, load_parameters, train, trainable
from fedalign.methods.merging import Merging, StatedPhase
from fedalign.methods.pcm import PCM
from fedalign.methods.preference_weighting import Losses, Weighting
from fedalign.methods.stated_preference import SideRewards
from fedalign.methods.stated_writer import MergedWriter
from fedalign.metrics.record import MetricSum, encode
from fedalign.models.control import Control, ControlSpec
from fedalign.models.merged_generation import Merger
from fedalign.models.mixing import Mixing
from fedalign.rng import Streams
from fedalign.template import Template

_log = logging.getLogger(__name__)

CONTROL = "control/"
"""What names of the control model's tensors begin with in a state."""
_BIAS = "personal_bias"


@dataclass(frozen=True)
class Controlled(Merging):
    """A control model weighs experts anew at every token.

    Parameters
    ----------
    rounds : int or None
        None takes ``federation.rounds``; 0 leaves the even mixture of the wanted experts.
    batch : int
        Prompts, or pairs, in a gradient step, at most.
    control : ControlSpec
    mixing : Mixing
    learning : Learning
    weighting : Weighting
    personal_bias : bool
        Whether every client trains numbers of its own, one an expert, that are added to the scores there, and keeps
        them: weights that its users want in any case need not go into what all share.
    local : LocalTraining
    """

    rounds: Annotated[int, Field(ge=0)] | None
    batch: Annotated[int, Field(ge=1)]
    control: ControlSpec
    mixing: Mixing
    learning: Learning
    weighting: Weighting
    personal_bias: bool
    local: LocalTraining

    def check(self, method: PCM) -> None:
        """Refuse what learning cannot do."""
        self.learning.check(self)

    def phases(self, method: PCM, setting: Setting) -> Sequence[ControlPhase]:
        """Return the phase that trains the control model."""
        return [ControlPhase(method, self, setting)]


class ControlPhase(StatedPhase):
    """Federated training of a control model; prompts, preferences, responses and judgments never leave the client.

    Parameters
    ----------
    method : PCM
    settings : Controlled
    setting : Setting

    Attributes
    ----------
    texts : ControlTexts
        What learning asks for.
    """

    name = "control"

    def __init__(self, method: PCM, settings: Controlled, setting: Setting) -> None:
        super().__init__(method, setting)
        self.settings, self.lengths = settings, method.lengths
        self.rounds = setting.rounds if settings.rounds is None else settings.rounds
        if settings.learning.needs_rewards and self.rewards is None:
            SideRewards(self.preferences, "learn from judgments (method/merging/learning=offline)")
        if isinstance(settings.learning, Online):
            settings.learning.coverage.check(self.preferences)
        # The workspace that states are loaded into; its own weights mean nothing.
        self.network = self._fresh(Streams(0))
        method.lengths.check(self.network.max_tokens)
        merger = Merger(self.experts, self.network, settings.mixing)
        self._writer = MergedWriter(merger, self.preferences, self.fallback, self.codec, self.lengths)
        self.texts = ControlTexts(self._writer, settings.batch, self.rewards, self.references)

    def initial(self, streams: Streams, artefacts: Artefacts) -> State:
        """Return a fresh control model, the weights of preferences, and what of the experts travels."""
        fresh = {CONTROL + name: p.detach().cpu() for name, p in trainable(self._fresh(Streams(streams.seed))).items()}
        weights = self.settings.weighting.initial(len(self.preferences.statements))
        return {**fresh, **weights, **self.experts_state(streams, artefacts)}

    def template(self, state: State) -> Template:
        """Return a delta for every tensor of the control model, and what is told of preferences."""
        own = Template.of_deltas({name: t for name, t in state.items() if name.startswith(CONTROL)})
        return own | Template(dict(self.settings.weighting.shapes(len(self.preferences.statements))))

    def own(self, shard: CorpusShard) -> Sequence[Example]:
        """Return the examples that leave something to decide and can be learnt from."""
        return [example for example in super().own(shard) if self.settings.learning.fits(example)]

    def load(self, state: State) -> None:
        """Put experts and control model into their workspaces."""
        if self.load_experts(state):
            self.texts.forget()
        load_parameters(self.network, _of_control(state))
        self.network.eval()

    def local(self, state: State, shard: CorpusShard, streams: Streams, memory: Memory) -> Contribution:
        """Train the control model on the client's examples and return the change."""
        examples = self.own(shard)
        if not examples:
            return Contribution({}, {WEIGHT: 0.0})
        self.load(state)
        bias = self._bias(memory)
        count = len(self.preferences.statements) + 1
        own = Round(examples, streams, [], Losses(torch.zeros(count), torch.zeros(count)))
        start = {name: tensor.to(self.experts.device) for name, tensor in _of_control(state).items()}
        steps = (self.settings.local.steps * (streams.round - 1), self.settings.local.steps * self.rounds)
        loss = self.settings.learning.loss(self, bias, own)
        with streams.torch_default("dropout"):
            self.network.train()
            value = train(
                self.network, start, loss, self.settings.local, *steps, memory, [] if bias is None else [bias]
            )
        self.network.eval()
        if bias is not None:
            memory[_BIAS] = bias.detach().cpu()
        return self._contribution(state, own, value)

    def update(self, state: State, total: Contribution, optimizer: ServerOptimizer) -> State:
        """Return the state after a step of the control model, and one of the weights of preferences.

        A round in which nobody had anything to learn from leaves it as it is.
        """
        if not total.scalars.get(WEIGHT, 0.0) > 0:
            _log.warning(
                "nobody who was asked has anything to learn from: no text whose preference names two sides or more%s",
                ", with a judgment" if isinstance(self.settings.learning, Offline) else "",
            )
            return dict(state)
        return super().update(state, total, optimizer) | self.settings.weighting.update(state, total)

    def report(self, state: State) -> Mapping[str, float]:
        """Return the weights of preferences, where there are any."""
        return self.settings.weighting.report(state, self.preferences.statements)

    def writer(self, state: State) -> MergedWriter:
        """Return the experts, merged by the control model of a state."""
        self.load(state)
        return self._writer

    def _fresh(self, streams: Streams) -> Control:
        """Return a control model that weighs all the same; without a head for values where nothing learns them."""
        experts = self.workspace
        count, combinations = len(self.preferences.names), len(self.preferences.statements)
        with streams.torch_default("control"):
            network = self.settings.control.build(count, combinations, experts.vocabulary, experts.device)
        network.value.requires_grad_(self.settings.learning.learns_values)
        return network

    def _bias(self, memory: Memory) -> nn.Parameter | None:
        if not self.settings.personal_bias:
            return None
        kept = memory.get(_BIAS, torch.zeros(len(self.preferences.names)))
        return nn.Parameter(kept.clone().to(self.experts.device))

    def _contribution(self, state: State, own: Round, loss: float) -> Contribution:
        after = {CONTROL + name: p.detach().cpu() for name, p in trainable(self.network).items()}
        weight = self.settings.weighting.weight(state, own.losses)
        change = weighted_delta({name: state[name] for name in after}, after, weight)
        groups = sorted({example.group for example in own.examples})
        sums = [*own.sums, *(MetricSum("train/loss", group, loss, 1.0) for group in groups)]
        told = self.settings.weighting.told(own.losses)
        return Contribution({**change.tensors, **told}, {**change.scalars, **encode(sums)})


def _of_control(state: State) -> State:
    return {name.removeprefix(CONTROL): tensor for name, tensor in state.items() if name.startswith(CONTROL)}
