"""The best single expert for each preference, found by one federated sum: what merging has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedalign.contribution import WEIGHT, Contribution, State
from fedalign.data.corpus import CorpusShard
from fedalign.methods.base import Artefacts, Memory, Participation, ServerOptimizer, Setting
from fedalign.methods.merging import Merging, StatedPhase, silent_control
from fedalign.methods.rollouts import uniform
from fedalign.methods.stated_preference import Preferences, SideRewards, combined
from fedalign.methods.stated_writer import MergedWriter, StatedText, StatedWriter
from fedalign.methods.text_evaluation import by_group
from fedalign.metrics.record import encode
from fedalign.models.merged_generation import Merger
from fedalign.models.mixing import Linear
from fedalign.rng import Streams
from fedalign.template import Template

if TYPE_CHECKING:
    from fedalign.methods.pcm import PCM

REWARDS, COUNTS = "single/rewards", "single/texts"
"""Names in the state: sums of rewards and numbers of texts, (G + 1, n), by preference and expert that wrote.

The last row is of preferences that are none of the G combinations."""

_LEAST = 1e-3
"""Texts below which a mean is taken to be unknown; noise may leave sums anywhere."""
_UNKNOWN = torch.finfo(torch.float32).min


@dataclass(frozen=True)
class SingleExpert(Merging):
    """The expert, among the wanted ones, whose texts were worth the most to the preference in training.

    A preference that nobody in training has takes the expert that was worth the most to all others together.

    Parameters
    ----------
    client_prompts : int
        Prompts of a client, at most; every wanted expert writes to each.
    batch : int
        Texts written at once.
    temperature : float
        Of the experts.
    """

    client_prompts: Annotated[int, Field(ge=1)]
    batch: Annotated[int, Field(ge=1)]
    temperature: Annotated[float, Field(gt=0)]

    def phases(self, method: PCM, setting: Setting) -> Sequence[SingleExpertPhase]:
        """Return the phase that chooses."""
        return [SingleExpertPhase(method, self, setting)]


class SingleExpertPhase(StatedPhase):
    """One round over all clients: what the texts of each wanted expert are worth to the preferences there.

    Parameters
    ----------
    method : PCM
    settings : SingleExpert
    setting : Setting
    """

    name = "single"
    rounds = 1
    participation = Participation.ALL

    def __init__(self, method: PCM, settings: SingleExpert, setting: Setting) -> None:
        super().__init__(method, setting)
        self.settings = settings
        self._rewards = SideRewards(self.preferences)
        merger = Merger(self.experts, silent_control(len(self.preferences.names), self.experts.device), Linear())
        self._writer = MergedWriter(merger, self.preferences, self.fallback, self.codec, method.lengths)

    def initial(self, streams: Streams, artefacts: Artefacts) -> State:
        """Return sums of nothing, and what of the experts travels."""
        return {name: torch.zeros(self._shape) for name in (REWARDS, COUNTS)} | self.experts_state(streams, artefacts)

    def template(self, state: State) -> Template:
        """Return the two sums."""
        return Template({REWARDS: self._shape, COUNTS: self._shape})

    @torch.no_grad()
    def local(self, state: State, shard: CorpusShard, streams: Streams, memory: Memory) -> Contribution:
        """Have every wanted expert write to some of the client's prompts; return what that is worth, in sums."""
        examples = self.own(shard)
        if not examples:
            return Contribution({}, {WEIGHT: 0.0})
        self.load_experts(state)
        order = torch.randperm(len(examples), generator=streams.torch("prompts"))[: self.settings.client_prompts]
        examples = [examples[i] for i in order.tolist()]
        vectors = torch.stack([self.vector(example) for example in examples])
        texts, experts = (vectors > 0).nonzero(as_tuple=True)
        seeds = torch.randint(2**62, (len(examples),), generator=streams.torch("texts")).tolist()
        # All experts write to a prompt with the same random numbers.
        draws = uniform(seeds, self.method.lengths.response)
        prompts = [example.prompt for example in examples]
        parts = zip(torch.split(texts, self.settings.batch), torch.split(experts, self.settings.batch), strict=True)
        worth = torch.cat(
            [self._worth([prompts[i] for i in own.tolist()], vectors[own], places, draws[own]) for own, places in parts]
        )
        rows = self.preferences.numbers(vectors)[texts] % self._shape[0]
        sums = {name: torch.zeros(self._shape) for name in (REWARDS, COUNTS)}
        sums[REWARDS].index_put_((rows, experts), worth, accumulate=True)
        sums[COUNTS].index_put_((rows, experts), torch.ones(len(rows)), accumulate=True)
        told = by_group("train/reward", [examples[i].group for i in texts.tolist()], worth)
        return Contribution(sums, {WEIGHT: 1.0, **encode(told)})

    def update(self, state: State, total: Contribution, optimizer: ServerOptimizer) -> State:
        """Return the state with the sums."""
        return {**state, **{name: total.tensors[name].float() for name in (REWARDS, COUNTS)}}

    def writer(self, state: State) -> SingleWriter:
        """Return the experts of a state, of which one alone writes a text."""
        self.load_experts(state)
        return SingleWriter(self._writer, self.preferences, self.fallback, state)

    @property
    def _shape(self) -> tuple[int, int]:
        return len(self.preferences.statements) + 1, len(self.preferences.names)

    def _worth(self, prompts: Sequence[str], vectors: Tensor, places: Tensor, draws: Tensor) -> Tensor:
        """Return what an expert's text to each prompt is worth to its preference, shape (B,)."""
        texts = _write_alone(self._writer, prompts, vectors, places, draws, self.settings.temperature).texts
        measured, reference = self._rewards.measured(prompts, texts), self.references.measured(self._rewards, prompts)
        return combined(self._rewards.sides(measured, reference), vectors)


class SingleWriter(StatedWriter):
    """One expert a text.

    Parameters
    ----------
    writer : MergedWriter
    preferences : Preferences
    fallback : float32 tensor, shape (n,)
        Those who state nothing may have any expert that has a weight here.
    state : State
        Says what experts are worth.
    """

    def __init__(self, writer: MergedWriter, preferences: Preferences, fallback: Tensor, state: State) -> None:
        self._writer, self._preferences, self._fallback = writer, preferences, fallback
        self._rewards, self._counts = state[REWARDS], state[COUNTS]

    def chosen(self, vectors: Tensor) -> Tensor:
        """Return the expert for each preference, int64 of shape (B,)."""
        silent = vectors.sum(1, keepdim=True) == 0
        wanted = torch.where(silent, self._fallback > 0, vectors > 0)
        numbers = self._preferences.numbers(vectors)
        rewards, counts = self._rewards[numbers], self._counts[numbers]
        known = ((counts > _LEAST) | ~wanted).all(1) & (numbers >= 0)
        best = torch.where(known[:, None], _mean(rewards, counts), _mean(self._rewards.sum(0), self._counts.sum(0)))
        return best.masked_fill(~wanted, -torch.inf).argmax(1)

    def write(
        self, prompts: Sequence[str], vectors: Tensor, draws: Tensor | None, temperature: float = 1.0
    ) -> StatedText:
        """Continue every prompt."""
        return _write_alone(self._writer, prompts, vectors, self.chosen(vectors), draws, temperature)


def _write_alone(
    writer: MergedWriter,
    prompts: Sequence[str],
    vectors: Tensor,
    places: Tensor,
    draws: Tensor | None,
    temperature: float,
) -> StatedText:
    """Have a single expert continue each prompt; no other is run."""
    told = writer.told(vectors)
    own = torch.nn.functional.one_hot(places, vectors.shape[1]).to(told.fixed)
    return writer.write_told(prompts, replace(told, active=own > 0, fixed=own), draws, temperature)


def _mean(total: Tensor, count: Tensor) -> Tensor:
    return torch.where(count > _LEAST, total / count.clamp(min=_LEAST), _UNKNOWN)
