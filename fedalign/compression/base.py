"""What compression is to a run, and the kind that changes nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedalign.contribution import Contribution, State


class Compression(ABC):
    """Makes a client's contribution to training smaller; the ``compression`` config group."""

    @abstractmethod
    def tensor_bytes(self, numbers: int) -> int | None:
        """Return the size of a delta of so many numbers; None where it travels as it is."""

    @abstractmethod
    def compress(
        self, contribution: Contribution, residual: Mapping[str, Tensor], generator: torch.Generator, bound: float
    ) -> tuple[Contribution, State]:
        """Return what is sent, and what is kept back for the client's next round.

        Parameters
        ----------
        contribution : Contribution
            As it would travel.
        residual : mapping from name to Tensor
            What was kept back in the client's last round.
        generator : torch.Generator
            For rounding by chance.
        bound : float
            L2 norm that all tensors of the contribution have together, at most, and what is sent has again; 0 for none.

        Raises
        ------
        ValueError
            If the contribution holds NaN or Inf.
        """


@dataclass(frozen=True)
class NoCompression(Compression):
    """Contributions travel as they are."""

    def tensor_bytes(self, numbers: int) -> None:
        """Return None."""
        return

    def compress(
        self, contribution: Contribution, residual: Mapping[str, Tensor], generator: torch.Generator, bound: float
    ) -> tuple[Contribution, State]:
        """Return the contribution itself."""
        return contribution, {}
