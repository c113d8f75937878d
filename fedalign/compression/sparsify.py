"""Fewer numbers: the largest entries of a tensor, and where they stand."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedalign.compression.packed import INDEX_BYTES, SMALLEST_SHARE


@dataclass(frozen=True)
class TopK:
    """Keeps a share of each tensor's entries, the largest in magnitude (Aji and Heafield 2017).

    Parameters
    ----------
    share : float
        Rounded up to whole entries.
    """

    share: Annotated[float, Field(ge=SMALLEST_SHARE, lt=1)]

    def kept(self, numbers: int) -> int:
        """Return how many of so many entries are kept."""
        # The rounding keeps 3 of 10 at 0.3, though the product is slightly above 3 in floating point.
        return min(numbers, math.ceil(round(self.share * numbers, 9)))

    def nbytes(self, numbers: int) -> int:
        """Return how many bytes the places of what is kept take."""
        return INDEX_BYTES * self.kept(numbers)

    def choose(self, values: Tensor) -> Tensor:
        """Return the places of the largest entries, ascending.

        Parameters
        ----------
        values : Tensor, shape (numbers,)

        Returns
        -------
        int32 Tensor, shape (kept(numbers),)
        """
        places = torch.topk(values.abs(), self.kept(values.numel())).indices
        return places.sort().values.to(torch.int32)
