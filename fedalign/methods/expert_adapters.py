"""LoRA adapters as experts: their names in a state, and the workspace that they are loaded into."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fedalign.contribution import State
from fedalign.methods.base import Setting
from fedalign.models.language_model import LanguageModelSpec
from fedalign.models.lora_experts import LoraExperts
from fedalign.rng import Streams


class AdapterWorkspace(LoraExperts):
    """LoRA experts that remember what they were loaded from, so that the same is not loaded again.

    Parameters
    ----------
    folder : Path
        Of the base.
    names : sequence of str
    spec : LanguageModelSpec
        Says the base's precision and device.
    scale : float
        ``alpha / rank`` of the adapters.
    """

    def __init__(self, folder: Path, names: Sequence[str], spec: LanguageModelSpec, scale: float) -> None:
        super().__init__(folder, names, spec.dtype, spec.device)
        self._scale = scale
        self._taken: Sequence[State] = ()

    def take(self, adapters: Sequence[State]) -> bool:
        """Load an adapter for each name; return whether any is another now.

        Parameters
        ----------
        adapters : sequence of State
            Kept by reference, and compared by value where they are other tensors: over a wire they always are.
        """
        if len(self._taken) == len(adapters) and all(map(_same, self._taken, adapters)):
            return False
        self.load(adapters, [self._scale] * len(adapters))
        self._taken = list(adapters)
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


def _same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(_equal(tensor, other[name]) for name, tensor in one.items())


def _equal(one: Tensor, other: Tensor) -> bool:
    return one is other or torch.equal(one, other)
