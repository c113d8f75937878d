"""Responses of different lengths, drawn from a seed, with rubbish where they are not."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LENGTHS = (5, 1, 3, 0)
S = 6
MASK = torch.tensor([[1] * n + [0] * (S - n) for n in LENGTHS])


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def garbage(values: Tensor, mask: Tensor = MASK) -> Tensor:
    """What stands outside a response must not matter, whatever it is."""
    return values.masked_fill(~mask.bool(), math.nan)
