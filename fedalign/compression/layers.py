"""Compression of weighted deltas: first fewer numbers, then fewer bits, and what is lost made up for later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedalign.compression.base import Compression
from fedalign.compression.number_formats import NumberFormat
from fedalign.compression.packed import Packed, PackedContribution
from fedalign.compression.sparsify import TopK
from fedalign.contribution import DELTA, Contribution, State, is_finite
from fedalign.errors import UserError


@dataclass(frozen=True)
class Layers(Compression):
    """Compresses the weighted deltas of a contribution, each tensor by itself; other tensors and scalars stay.

    Statistics and counts are left alone: they are few, and a method may need them to be exact (a histogram that sums to
    its count).

    Parameters
    ----------
    topk : TopK or None
        Sends some entries only.
    number : NumberFormat or None
        How each number that is sent travels; None is in single precision.
    error_feedback : bool
        Add what was lost to the client's next contribution (Seide et al. 2014; Karimireddy et al. 2019).

    Raises
    ------
    UserError
        If nothing is compressed.
    """

    topk: TopK | None
    number: NumberFormat | None
    error_feedback: bool

    def __post_init__(self) -> None:
        """Refuse layers that do nothing."""
        if self.topk is None and self.number is None:
            raise UserError("compression.topk and compression.number are both null; set one, or compression=none")

    def tensor_bytes(self, numbers: int) -> int:
        """Return the size of values, places and scale."""
        kept, places = numbers, 0
        if self.topk is not None:
            kept, places = self.topk.kept(numbers), self.topk.nbytes(numbers)
        return places + (4 * kept if self.number is None else self.number.nbytes(kept))

    def compress(
        self, contribution: Contribution, residual: Mapping[str, Tensor], generator: torch.Generator, bound: float
    ) -> tuple[Contribution, State]:
        """Return the contribution with compressed deltas, and what they lack.

        A bound is kept whatever is made up for: the residual comes on top first, all is clipped again, and from there
        on no number grows.
        """
        deltas = {
            name: tensor.detach().float() + residual.get(name, 0.0)
            for name, tensor in contribution.tensors.items()
            if name.startswith(DELTA) and tensor.is_floating_point()
        }
        meant = Contribution({**contribution.tensors, **deltas}, contribution.scalars)
        if bound:
            meant = meant.clip(bound)
        packed = {name: self._packed(name, meant.tensors[name], generator, bound > 0) for name in deltas}
        sent = {name: each.unpack() for name, each in packed.items()}
        kept = {name: meant.tensors[name] - tensor for name, tensor in sent.items()} if self.error_feedback else {}
        return PackedContribution({**meant.tensors, **sent}, meant.scalars, packed), kept

    def _packed(self, name: str, tensor: Tensor, generator: torch.Generator, bounded: bool) -> Packed:
        if not is_finite(tensor):
            raise ValueError(f"{name}: holds NaN or Inf")
        values, places = tensor.reshape(-1), None
        if self.topk is not None:
            places = self.topk.choose(values)
            values = values[places.long()]
        scale = None
        if self.number is not None:
            values, scale = self.number.encode(values, generator, bounded)
        return Packed(tuple(tensor.shape), values, scale, places)
