"""How one person's judgments and the reward heads go together while a client trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedalign.methods.base import Memory
from fedalign.objectives.mixture import blend
from fedalign.objectives.preference import preference_nll


class Membership(ABC):
    """One person's part in the heads, for a round."""

    @property
    def personal(self) -> Sequence[nn.Parameter]:
        """What is trained along with the heads and stays on the client."""
        return ()

    @abstractmethod
    def losses(self, logits: Tensor, preferred: Tensor, index: Tensor) -> Tensor:
        """Return the loss of each judgment of a step.

        Parameters
        ----------
        logits : Tensor, shape (K, ...)
            Every head's log odds of response A.
        preferred : Tensor, shape (...)
        index : int64 Tensor, shape (...)
            Which of the person's judgments they are.

        Returns
        -------
        Tensor, shape (...)
        """

    def weights(self, index: Tensor) -> Tensor | None:
        """Return fixed weights of the heads' losses, shape (K, ...), that :meth:`losses` amounts to, if it does."""
        return None

    @abstractmethod
    def shares(self) -> Tensor:
        """Return the weight of the person's update in the mean of each head, shape (K,), within [0, 1]."""

    def remember(self, memory: Memory) -> None:  # noqa: B027 - most have nothing to remember
        """Write into memory what the next round starts from."""


class WeightedHeads(Membership):
    """Each head learns from each judgment with a fixed weight.

    Parameters
    ----------
    weights : Tensor, shape (K, J)
        By head and judgment of the person, without gradient.
    shares : Tensor, shape (K,)
    """

    def __init__(self, weights: Tensor, shares: Tensor) -> None:
        self._weights, self._shares = weights, shares

    def losses(self, logits: Tensor, preferred: Tensor, index: Tensor) -> Tensor:
        """Return each judgment's losses under the heads, weighted and summed."""
        return (self.weights(index) * preference_nll(logits, preferred.expand_as(logits))).sum(0)

    def weights(self, index: Tensor) -> Tensor:
        """Return those of the judgments at ``index``."""
        return self._weights[:, index]

    def shares(self) -> Tensor:
        """Return what was given."""
        return self._shares


class BlendedHeads(Membership):
    """Heads are blended into one reward; the logits of the weights are personal and trained.

    Parameters
    ----------
    start : Tensor, shape (K,)
        Logits of the weights.
    rate : float
        The unit in which the logits are trained.
    even : bool
        Whether the update counts fully in the mean of every head, instead of by its weight in the blend.
    key : str
        Where the logits are remembered.
    """

    def __init__(self, start: Tensor, rate: float, even: bool, key: str) -> None:
        self._parameter = nn.Parameter(start / rate)
        self._rate, self._even, self._key = rate, even, key

    @property
    def personal(self) -> Sequence[nn.Parameter]:
        """The scaled logits."""
        return (self._parameter,)

    @property
    def logits(self) -> Tensor:
        """Logits of the weights, shape (K,)."""
        return self._rate * self._parameter

    def losses(self, logits: Tensor, preferred: Tensor, index: Tensor) -> Tensor:
        """Return the loss of the blend."""
        return preference_nll(blend(logits, torch.softmax(self.logits, 0)), preferred)

    def shares(self) -> Tensor:
        """Return the weights as they are now, or ones."""
        weights = torch.softmax(self.logits.detach(), 0)
        return torch.ones_like(weights) if self._even else weights

    def remember(self, memory: Memory) -> None:
        """Write the logits into memory."""
        memory[self._key] = self.logits.detach().clone()
