"""Bradley-Terry reward models without a latent: one network, or several side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fedalign.errors import UserError
from fedalign.models.body import Body, BodySpec
from fedalign.models.utility import UtilitySpec


@dataclass(frozen=True)
class RewardSpec(UtilitySpec):
    """Settings of a reward model.

    Parameters
    ----------
    body : BodySpec
        Reads an encoded response.
    width : int
        Hidden width of the head.
    head : {"reward", "selector"}
        ``reward`` scores one response at a time (Bradley-Terry); ``selector`` reads both responses together.
    """

    body: BodySpec
    width: Annotated[int, Field(ge=1)]
    head: Literal["reward", "selector"]

    def build(self, features: int, heads: int) -> RewardHeads:
        """Return ``heads`` fresh networks for encoder vectors of length ``features``."""
        return RewardHeads(features, heads, self)

    def build_utility(self, features: int) -> nn.Module:
        """Return a fresh network that scores one response at a time.

        Raises
        ------
        UserError
            If the head reads both responses together.
        """
        if self.head != "reward":
            raise UserError(f"model.head={self.head} gives no response a utility of its own; set model.head=reward")
        return _Utility(features, self)


class RewardHeads(nn.Module):
    """K whole networks, each with a body of its own, so that no head is held back by another's features."""

    stackable: ClassVar[bool] = True

    def __init__(self, features: int, heads: int, spec: RewardSpec) -> None:
        super().__init__()
        self.heads = nn.ModuleList(RewardHead(features, spec) for _ in range(heads))

    def logits(self, first: Tensor, second: Tensor) -> Tensor:
        """Return every head's log odds that the first response is preferred.

        Parameters
        ----------
        first, second : float Tensor, shape (..., features)

        Returns
        -------
        Tensor, shape (K, ...)
        """
        return torch.stack([head(first, second) for head in self.heads])


class RewardHead(nn.Module):
    """One whole network: a body, and a score of one response or of two together."""

    stackable: ClassVar[bool] = True

    def __init__(self, features: int, spec: RewardSpec) -> None:
        super().__init__()
        self.joint = spec.head == "selector"
        self.body: Body = spec.body.build(features)
        inputs = self.body.dim * (2 if self.joint else 1)
        self.score = nn.Sequential(nn.Linear(inputs, spec.width), nn.GELU(), nn.Linear(spec.width, 1))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the log odds that the first response is preferred, shape (...), from shapes (..., features)."""
        first, second = self.body(first), self.body(second)
        if self.joint:
            return self.score(torch.cat([first, second], -1)).squeeze(-1)  # type: ignore[no-any-return]
        return (self.score(first) - self.score(second)).squeeze(-1)  # type: ignore[no-any-return]


class _Utility(nn.Module):
    stackable: ClassVar[bool] = True

    def __init__(self, features: int, spec: RewardSpec) -> None:
        super().__init__()
        self.body: Body = spec.body.build(features)
        # The last bias would cancel within a menu.
        self.score = nn.Sequential(
            nn.Linear(self.body.dim, spec.width), nn.GELU(), nn.Linear(spec.width, 1, bias=False)
        )

    def forward(self, responses: Tensor) -> Tensor:
        utilities: Tensor = self.score(self.body(responses)).squeeze(-1)
        return utilities
