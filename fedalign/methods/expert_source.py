"""Where experts come from: the contract of the ``experts`` part of PCM."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedalign.contribution import State
from fedalign.methods.base import Artefacts, Phase, Setting
from fedalign.models.experts import Experts
from fedalign.models.text import TextCodec
from fedalign.rng import Streams

if TYPE_CHECKING:
    from fedalign.methods.pcm import PCM

KEY = "method.experts"


class ExpertSource(ABC):
    """How a run comes by its experts; one subclass a kind, a frozen dataclass of its settings."""

    def phases(self, method: PCM, setting: Setting) -> Sequence[Phase[Any]]:
        """Return the phases that train them; by default there are some already."""
        return ()

    @abstractmethod
    def open(self, names: Sequence[str], setting: Setting) -> Experts:
        """Return experts of these names, in this order, as a workspace that :meth:`load` fills where it must.

        Raises
        ------
        UserError
            If one cannot be had, or they do not share a vocabulary.
        """

    @abstractmethod
    def codec(self, setting: Setting) -> TextCodec:
        """Return the experts' tokenizer."""

    def state(self, names: Sequence[str], streams: Streams, artefacts: Artefacts, setting: Setting) -> State:
        """Return what of the experts travels to clients; by default nothing, since every node has them.

        Without artefacts, as where only names and shapes are asked for, what is not trained yet.
        """
        return {}

    def load(self, experts: Experts, state: State) -> bool:
        """Put what travels into what :meth:`open` returned; by default there is nothing to do.

        Returns
        -------
        bool
            Whether the experts are others now: loaded again from the same tensors, nothing is done.
        """
        return False

    def fallback(self, names: Sequence[str]) -> Tensor:
        """Return weights for those who state nothing, float32 of shape (n,) on the simplex; by default even ones."""
        return torch.full((len(names),), 1.0 / len(names))
