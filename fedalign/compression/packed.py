"""A tensor as it travels compressed, and the numbers that it stands for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedalign.contribution import Contribution

SMALLEST_SHARE = 1e-4
"""Of a tensor's entries that may travel, so that a short message cannot ask for a huge tensor."""

INDEX_BYTES, SCALE_BYTES = 4, 4

_FORMATS = (torch.float32, torch.bfloat16, torch.float16, torch.int8)


@dataclass(frozen=True)
class Packed:
    """Some or all entries of a tensor, in few bits.

    Parameters
    ----------
    shape : tuple of int
        Of the tensor.
    values : Tensor, shape (k,)
        float32, bfloat16, float16 or int8.
    scale : float32 Tensor, shape (), or None
        What int8 values are multiplied with.
    indices : int32 Tensor, shape (k,), or None
        Places of the values in the flat tensor, ascending; None is all places in order.

    Raises
    ------
    ValueError
        If the parts do not fit together, as those that came over a wire may not.
    """

    shape: tuple[int, ...]
    values: Tensor
    scale: Tensor | None = None
    indices: Tensor | None = None

    def __post_init__(self) -> None:
        """Check what came over the wire."""
        if self.values.dim() != 1 or self.values.dtype not in _FORMATS:
            raise ValueError(f"compressed values of type {self.values.dtype} and shape {tuple(self.values.shape)}")
        scaled = self.scale is not None and self.scale.dtype == torch.float32 and self.scale.dim() == 0
        if scaled != (self.values.dtype == torch.int8) or (self.scale is not None and not scaled):
            raise ValueError(f"a scale does not go with compressed values of type {self.values.dtype}")
        if any(size < 0 for size in self.shape):
            raise ValueError(f"a compressed tensor of shape {self.shape}")
        self._check_places()

    @property
    def numbers(self) -> int:
        """Entries of the whole tensor."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes on the wire, without Flower's framing."""
        parts = [part for part in (self.values, self.scale, self.indices) if part is not None]
        return sum(part.numel() * part.element_size() for part in parts)

    def unpack(self) -> Tensor:
        """Return the tensor, in float32; entries that did not travel are zero."""
        numbers = self.values.float()
        if self.scale is not None:
            numbers = numbers * self.scale
        if self.indices is None:
            return numbers.reshape(self.shape)
        dense = torch.zeros(self.numbers, dtype=torch.float32, device=numbers.device)
        dense[self.indices.long()] = numbers
        return dense.reshape(self.shape)

    def _check_places(self) -> None:
        found = self.values.numel()
        if self.indices is None:
            if found != self.numbers:
                raise ValueError(f"{found} compressed values for a tensor of shape {self.shape}")
            return
        if self.indices.dtype != torch.int32 or self.indices.shape != self.values.shape:
            raise ValueError(f"{self.indices.numel()} places of type {self.indices.dtype} for {found} values")
        if found < self.numbers * SMALLEST_SHARE:
            raise ValueError(f"{found} compressed values for a tensor of shape {self.shape}: too few")
        places = self.indices.long()
        ascending = bool((places[1:] > places[:-1]).all())
        if found and not (ascending and int(places[0]) >= 0 and int(places[-1]) < self.numbers):
            raise ValueError("places of compressed values are not ascending, or lie outside of the tensor")


@dataclass(frozen=True)
class PackedContribution(Contribution):
    """A contribution some tensors of which travel compressed; ``tensors`` holds what they stand for.

    Parameters
    ----------
    packed : mapping from name to Packed
    """

    packed: Mapping[str, Packed] = field(default_factory=dict)
