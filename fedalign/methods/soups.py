"""Personalized Soups: one adapter for each preference, the mean of the wanted experts' parameters.

Jang et al., "Personalized Soups" (arXiv 2310.11564), section 3.3. A text costs one pass a token, and a preference the
memory of an adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedalign.contribution import State
from fedalign.errors import UserError
from fedalign.methods.base import Setting
from fedalign.methods.expert_adapters import Adapters, AdapterWorkspace, LoraSource, language_model
from fedalign.methods.merging import FixedPhase, Merging, silent_control
from fedalign.methods.stated_preference import Preferences
from fedalign.methods.stated_writer import MergedWriter, StatedText, StatedWriter
from fedalign.methods.text_lengths import Lengths
from fedalign.models.control import Told
from fedalign.models.merged_generation import Merger
from fedalign.models.mixing import Linear
from fedalign.models.text import TextCodec

if TYPE_CHECKING:
    from fedalign.methods.pcm import PCM


@dataclass(frozen=True)
class Soups(Merging):
    """The mean of the wanted experts' LoRA parameters, by the weights that are stated; equal ones as published."""

    def check(self, method: PCM) -> None:
        """Refuse experts that have no adapters."""
        if not isinstance(method.experts, LoraSource):
            raise UserError(
                f"method/merging=soups takes the mean of adapters, and method.experts={type(method.experts).__name__} "
                "are none; choose method/experts=trained, adapters or types"
            )

    def phases(self, method: PCM, setting: Setting) -> Sequence[SoupsPhase]:
        """Return the phase that serves them."""
        return [SoupsPhase(method, setting)]


class SoupsPhase(FixedPhase):
    """Scores what merged adapters write; the experts themselves write the texts that these are compared with."""

    name = "soups"

    def __init__(self, method: PCM, setting: Setting) -> None:
        super().__init__(method, setting)
        self._soup = AdapterWorkspace((), language_model(setting))

    def writer(self, state: State) -> SoupWriter:
        """Return the experts of a state, merged."""
        self.load_experts(state)
        assert isinstance(self.source, LoraSource)
        found = self.source.adapters(self.preferences.names, state, self.setting)
        return SoupWriter(self._soup, found, self.preferences, self.fallback, self.codec, self.method.lengths)


class SoupWriter(StatedWriter):
    """Writes under each preference with an adapter of its own, all in one batch.

    Parameters
    ----------
    soup : AdapterWorkspace
        Takes the adapters of a batch's preferences.
    experts : Adapters
    preferences : Preferences
    fallback : float32 tensor, shape (n,)
        Weights for those who state nothing.
    codec : TextCodec
    lengths : Lengths

    Raises
    ------
    UserError
        If the experts do not adapt the same matrices at the same rank and scale: parameters then have no mean.
    """

    def __init__(
        self,
        soup: AdapterWorkspace,
        experts: Adapters,
        preferences: Preferences,
        fallback: Tensor,
        codec: TextCodec,
        lengths: Lengths,
    ) -> None:
        _check_alike(experts, preferences.names)
        self._soup, self._experts, self._preferences, self._fallback = soup, experts, preferences, fallback
        self._codec, self._lengths = codec, lengths

    def write(
        self, prompts: Sequence[str], vectors: Tensor, draws: Tensor | None, temperature: float = 1.0
    ) -> StatedText:
        """Continue every prompt."""
        silent = vectors.sum(1, keepdim=True) == 0
        weights = torch.where(silent, self._fallback, vectors)
        rows, place = torch.unique(weights / weights.sum(1, keepdim=True), dim=0, return_inverse=True)
        count, device = len(rows), self._soup.device
        self._soup.names = tuple(self._preferences.statement(row) for row in rows)
        merged = [weighted_adapter(self._experts.factors, row) for row in rows]
        self._soup.take(Adapters(merged, [self._experts.scales[0]] * count))
        merger = Merger(self._soup, silent_control(count, device), Linear())
        writer = MergedWriter(merger, self._preferences, self._fallback, self._codec, self._lengths)
        found = writer.write_told(prompts, _alone(place, count, device), draws, temperature)
        return StatedText(found.tokens, found.texts)


def weighted_adapter(adapters: Sequence[State], weights: Tensor) -> State:
    """Return the weighted mean of adapters of the same names, factor by factor; weights, shape (n,), sum to 1."""
    there = [(adapter, weight) for adapter, weight in zip(adapters, weights.tolist(), strict=True) if weight]
    return {name: torch.stack([each[name].float() * w for each, w in there]).sum(0) for name in adapters[0]}


def _alone(place: Tensor, count: int, device: torch.device) -> Told:
    """Return what gives every text its own adapter and no other."""
    own = torch.nn.functional.one_hot(place, count).float()
    nothing = torch.zeros(len(place), 0, dtype=torch.int64)
    told = Told(own, own > 0, torch.full((len(place),), -1), (nothing, nothing), own)
    return told.map(lambda tensor: tensor.to(device))


def _check_alike(experts: Adapters, names: Sequence[str]) -> None:
    first = {name: tuple(tensor.shape) for name, tensor in experts.factors[0].items()}
    for name, factors, scale in zip(names, experts.factors, experts.scales, strict=True):
        shapes = {key: tuple(tensor.shape) for key, tensor in factors.items()}
        if shapes != first or scale != experts.scales[0]:
            raise UserError(
                f"method/merging=soups: the adapters of {names[0]} and {name} differ in their matrices, ranks or "
                "alpha / rank, and have no mean; take experts that were trained alike, or method/merging=control"
            )
