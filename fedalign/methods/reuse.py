"""Which of the responses that were drawn a gradient step learns from: a batch of them serves several steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from fedalign.methods.policy_gradient import Algorithm

KeptT = TypeVar("KeptT")


@dataclass(frozen=True)
class Drawn(Generic[KeptT]):
    """Responses to a batch of prompts.

    Parameters
    ----------
    kept : KeptT
        Whatever is kept of them, in rows: all responses to the first prompt, then those to the second, and so on.
    prompts : int
    seed : int
        Of the order in which prompts are learnt from.
    """

    kept: KeptT
    prompts: int
    seed: int


class Reuse(Generic[KeptT]):
    """Draws responses when those before have served as often as the algorithm says.

    Parameters
    ----------
    algorithm : Algorithm
    draw : callable
        Returns the responses to the next batch of prompts.
    """

    def __init__(self, algorithm: Algorithm, draw: Callable[[], Drawn[KeptT]]) -> None:
        self._algorithm, self._draw = algorithm, draw
        self._order: list[Tensor] = []
        self._kept: list[KeptT] = []

    def next(self) -> tuple[KeptT, Tensor]:
        """Return what is kept, and the rows that the next step learns from, int64 of shape (N,)."""
        if not self._order:
            drawn = self._draw()
            self._kept[:] = [drawn.kept]
            for epoch in range(self._algorithm.epochs):
                generator = torch.Generator().manual_seed(drawn.seed ^ (epoch + 1))
                shuffled = torch.randperm(drawn.prompts, generator=generator)
                # Not chunk, which makes three parts of five prompts that are to be four.
                self._order.extend(shuffled.tensor_split(min(self._algorithm.minibatches, drawn.prompts)))
        count = self._algorithm.responses
        prompts = self._order.pop(0)
        return self._kept[0], (prompts[:, None] * count + torch.arange(count)).flatten()
