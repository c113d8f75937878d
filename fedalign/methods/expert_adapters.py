"""LoRA adapters as experts: what their sources share, the workspace that they are loaded into, names in a state."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fedalign.contribution import State
from fedalign.hub import model_folder
from fedalign.methods.base import Setting
from fedalign.methods.expert_source import ExpertSource
from fedalign.models.language_model import LanguageModelSpec
from fedalign.models.lora_experts import LoraExperts
from fedalign.models.text import TextCodec
from fedalign.rng import Streams


class LoraSource(ExpertSource):
    """Experts that are LoRA adapters of the run's model."""

    @abstractmethod
    def adapters(self, names: Sequence[str], state: State, setting: Setting) -> Adapters:
        """Return the experts' adapters, of these names in this order.

        Parameters
        ----------
        names : sequence of str
        state : State
            Holds what of them travels.
        setting : Setting

        Raises
        ------
        UserError
            If one cannot be had.
        """

    def open(self, names: Sequence[str], setting: Setting) -> AdapterWorkspace:
        """Return the run's model, with a place for every adapter."""
        return AdapterWorkspace(names, language_model(setting))

    def codec(self, setting: Setting) -> TextCodec:
        """Return the model's tokenizer."""
        return TextCodec(language_model(setting).model, "model")


@dataclass(frozen=True)
class Adapters:
    """n adapters.

    Parameters
    ----------
    factors : sequence of State, length n
        Factors of matrices by peft's names.
    scales : sequence of float, length n
        ``alpha / rank`` of each.
    """

    factors: Sequence[State]
    scales: Sequence[float]


class AdapterWorkspace(LoraExperts):
    """LoRA experts that remember what they were loaded from, so that the same is not loaded again.

    Parameters
    ----------
    names : sequence of str
    spec : LanguageModelSpec
        Says which model they adapt, its precision and device.

    Attributes
    ----------
    spec : LanguageModelSpec
    """

    def __init__(self, names: Sequence[str], spec: LanguageModelSpec) -> None:
        super().__init__(model_folder(spec.model, "model.model"), names, spec.dtype, spec.device)
        self.spec = spec
        self._taken = Adapters((), ())

    def take(self, adapters: Adapters) -> bool:
        """Load adapters; return whether any is another now.

        Parameters
        ----------
        adapters : Adapters
            Kept by reference, and compared by value where they are other tensors: over a wire they always are.
        """
        if _same(self._taken, adapters):
            return False
        self.load(adapters.factors, adapters.scales)
        self._taken = adapters
        return True


def language_model(setting: Setting) -> LanguageModelSpec:
    """Return the run's model, of which experts are adapters."""
    assert isinstance(setting.model, LanguageModelSpec)
    return setting.model


def fresh_adapter(spec: LanguageModelSpec, streams: Streams) -> State:
    """Return the tensors of an adapter that changes nothing: one factor is drawn by the run's seed, the other is 0."""
    with Streams(streams.seed).torch_default("adapter"):
        return {name: tensor.cpu() for name, tensor in spec.build("model").adapter().items()}


def named_adapters(sides: Sequence[str], adapter: State) -> State:
    """Return a copy of an adapter for each side, under its name in a state."""
    return {prefix_of(side) + name: tensor.clone() for side in sides for name, tensor in adapter.items()}


def adapter_of(state: State, side: str) -> State:
    """Return a side's adapter from a state, without its prefix."""
    prefix = prefix_of(side)
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def prefix_of(side: str) -> str:
    """Return what names of a side's tensors in a state begin with."""
    return f"expert/{side}/"


def _same(one: Adapters, other: Adapters) -> bool:
    if list(one.scales) != list(other.scales):
        return False
    return all(
        a.keys() == b.keys() and all(tensor is b[name] or torch.equal(tensor, b[name]) for name, tensor in a.items())
        for a, b in zip(one.factors, other.factors, strict=True)
    )
