"""Weights over experts that follow the preference alone, the same at every token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from fedalign.models.control import Control, ControlSpec, Told, zero_head


@dataclass(frozen=True)
class ConstantSpec(ControlSpec):
    """Weights that follow the preference alone, the same at every token; what a control model is compared with.

    Parameters
    ----------
    width : int
        Hidden units.
    """

    width: Annotated[int, Field(ge=1)]

    @property
    def reads_texts(self) -> bool:
        """Never."""
        return False

    def build(self, experts: int, preferences: int, vocabulary: int, device: torch.device) -> ConstantControl:
        """Return a fresh network."""
        return ConstantControl(experts, self.width).to(device)


class ConstantControl(Control):
    """One hidden layer on the preference's vector.

    Parameters
    ----------
    experts, width : int
    """

    def __init__(self, experts: int, width: int) -> None:
        super().__init__(experts)
        self.body = nn.Sequential(nn.Linear(experts, width), nn.Tanh())
        self.head = zero_head(width, experts)
        self.value = zero_head(width, 1)

    def advance(
        self, told: Told, input_ids: Tensor, attention_mask: Tensor, cache: Any, keep_cache: bool = True
    ) -> tuple[Tensor, Tensor, Any]:
        """Return the same scores and value at every token."""
        # Computed once: a matrix product may round equal rows differently.
        hidden, tokens = self.body(told.vector), input_ids.shape[1]
        return self.head(hidden)[:, None].expand(-1, tokens, -1), self.value(hidden).expand(-1, tokens), None
