"""Judgments of many clients side by side, filled up to one size, with each client's own draws of what is left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedalign.methods.pairs import Batch


@dataclass(frozen=True)
class StackedBatch:
    """The batches of S clients, with the clients along the first dimension.

    Parameters
    ----------
    first, second : float Tensor, shape (S, E, T, features)
        T is the largest of the clients'; what a client lacks is 0.
    preferred : float Tensor, shape (S, E, T)
    known : bool Tensor, shape (S, E, T)
        Which judgments are there.
    """

    first: Tensor
    second: Tensor
    preferred: Tensor
    known: Tensor

    def mean(self, values: Tensor) -> Tensor:
        """Return each client's mean, shape (S,), of values of its judgments, shape (S, E, T)."""
        own = torch.where(self.known, values, 0.0)
        return own.sum((1, 2)) / self.known.sum((1, 2))


def stack_batches(batches: Sequence[Batch]) -> StackedBatch:
    """Return batches of shapes (E, T_i) side by side; all have as many episodes."""
    episodes, features = batches[0].first.shape[0], batches[0].first.shape[-1]
    shape = (len(batches), episodes, max(batch.preferred.shape[1] for batch in batches))
    first, second = torch.zeros(*shape, features), torch.zeros(*shape, features)
    preferred, known = torch.zeros(shape), torch.zeros(shape, dtype=torch.bool)
    for row, batch in enumerate(batches):
        size = batch.preferred.shape[1]
        first[row, :, :size] = batch.first
        second[row, :, :size] = batch.second
        preferred[row, :, :size] = batch.preferred
        known[row, :, :size] = True
    return StackedBatch(first, second, preferred, known)


def drop(batch: Batch, share: float, generator: torch.Generator) -> Batch:
    """Return the batch as a body in training would read it, with the dropout of its inputs drawn from ``generator``.

    It draws what torch.nn.Dropout would from the default generator: for the first responses, then for the second.
    """
    if not share:
        return batch
    return Batch(_dropped(batch.first, share, generator), _dropped(batch.second, share, generator), batch.preferred)


def _dropped(vectors: Tensor, share: float, generator: torch.Generator) -> Tensor:
    return vectors * torch.empty_like(vectors).bernoulli_(1 - share, generator=generator).div_(1 - share)
