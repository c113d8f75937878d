"""Networks that say how much each response is worth on its own: what rankings and choices are explained by."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from fedalign.models.base import ModelSpec


class UtilitySpec(ModelSpec, ABC):
    """Settings of a network that gives every response a utility; one subclass a network, a frozen dataclass."""

    @abstractmethod
    def build_utility(self, features: int) -> nn.Module:
        """Return a fresh network from encoded responses, shape (..., features), to utilities, shape (...).

        Draws from PyTorch's default generator.

        Raises
        ------
        UserError
            If these settings compare responses and give none a utility of its own.
        """


@dataclass(frozen=True)
class LinearUtility(UtilitySpec):
    """One weight for each feature, without a bias, which would cancel within a menu.

    Parameters
    ----------
    init_std : float
        Standard deviation of the first utilities of responses whose features are of size about 1; responses of length 1
        have utilities smaller by the square root of the number of features.
    """

    init_std: Annotated[float, Field(gt=0)]

    def build_utility(self, features: int) -> nn.Module:
        """Return a fresh network."""
        return _Linear(features, self.init_std)


class _Linear(nn.Module):
    def __init__(self, features: int, init_std: float) -> None:
        super().__init__()
        self.score = nn.Linear(features, 1, bias=False)
        nn.init.normal_(self.score.weight, std=init_std / math.sqrt(features))

    def forward(self, responses: Tensor) -> Tensor:
        utilities: Tensor = self.score(responses).squeeze(-1)
        return utilities
