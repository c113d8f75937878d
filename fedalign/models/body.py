"""The part of a reward model that reads an encoded response: frozen vectors here, a language model elsewhere."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor, nn


class Body(nn.Module):
    """A network from encoder vectors, shape (N, features), to hidden vectors, shape (N, dim).

    Attributes
    ----------
    dim : int
        Width of the output.
    input_dropout : float
        Share of its input that a training step leaves out; it draws for nothing else, if this is not 0.
    """

    dim: int
    input_dropout: float = 0.0


class BodySpec(ABC):
    """Settings of a body; one subclass a kind, a frozen dataclass."""

    @abstractmethod
    def build(self, features: int) -> Body:
        """Return a fresh body for encoder vectors of length ``features``."""


@dataclass(frozen=True)
class FeatureBody(BodySpec):
    """A small network on the vectors of a frozen encoder.

    Parameters
    ----------
    width : int
        Of every layer and of the output.
    layers : int
        Linear layers, each followed by a GELU but for the last.
    dropout : float
        Share of the input that a training step leaves out.
    """

    width: Annotated[int, Field(ge=1)]
    layers: Annotated[int, Field(ge=1)]
    dropout: Annotated[float, Field(ge=0, lt=1)]

    def build(self, features: int) -> Body:
        """Return a fresh network."""
        return _FeatureNetwork(features, self)


class _FeatureNetwork(Body):
    stackable: ClassVar[bool] = True

    def __init__(self, features: int, spec: FeatureBody) -> None:
        super().__init__()
        self.dim, self.input_dropout = spec.width, spec.dropout
        # Encoders give vectors of length about 1; entries of size about 1 suit the usual initial weights.
        self._scale = math.sqrt(features)
        layers: list[nn.Module] = [nn.Dropout(spec.dropout), nn.Linear(features, spec.width)]
        for _ in range(spec.layers - 1):
            layers += [nn.GELU(), nn.Linear(spec.width, spec.width)]
        self.layers = nn.Sequential(*layers)

    def forward(self, vectors: Tensor) -> Tensor:
        """Return hidden vectors, shape (..., dim)."""
        hidden: Tensor = self.layers(vectors * self._scale)
        return hidden
