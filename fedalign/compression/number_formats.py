"""Fewer bits for each number: half precision, and 8-bit integers with one scale for a tensor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedalign.compression.packed import SCALE_BYTES

_LEVELS = 127


class NumberFormat(ABC):
    """Turns numbers into shorter ones."""

    @abstractmethod
    def encode(self, values: Tensor, generator: torch.Generator, towards_zero: bool) -> tuple[Tensor, Tensor | None]:
        """Return the short numbers, and the scale that they are multiplied with, if there is one.

        Parameters
        ----------
        values : float32 Tensor, shape (k,)
            Finite.
        generator : torch.Generator
            For rounding by chance.
        towards_zero : bool
            Let no number grow, so that a bound on the length of all holds afterwards.
        """

    @abstractmethod
    def nbytes(self, numbers: int) -> int:
        """Return how many bytes so many numbers take."""


@dataclass(frozen=True)
class Cast(NumberFormat):
    """Half precision: bfloat16 keeps the range of float32, float16 three bits more of each number.

    Parameters
    ----------
    dtype : {"bfloat16", "float16"}
    """

    dtype: Literal["bfloat16", "float16"]

    def encode(self, values: Tensor, generator: torch.Generator, towards_zero: bool) -> tuple[Tensor, None]:
        """Return the nearest short numbers, or the nearest that did not grow; the largest stands for all beyond."""
        dtype = torch.bfloat16 if self.dtype == "bfloat16" else torch.float16
        largest = torch.finfo(dtype).max
        short = values.clamp(-largest, largest).to(dtype)
        if towards_zero:
            grown = short.float().abs() > values.abs()
            # Of sign and magnitude: one less is the next number towards zero, whatever the sign.
            short = torch.where(grown, short.view(torch.int16) - 1, short.view(torch.int16)).view(dtype)
        return short, None

    def nbytes(self, numbers: int) -> int:
        """Return two bytes a number."""
        return 2 * numbers


@dataclass(frozen=True)
class Int8(NumberFormat):
    """8-bit integers from -127 to 127; the scale of a tensor is its largest magnitude over 127.

    Parameters
    ----------
    rounding : {"stochastic", "nearest"}
        Stochastic rounding is right on average (Alistarh et al. 2017, QSGD), nearest is closer each time.
    """

    rounding: Literal["stochastic", "nearest"]
    scale_bytes: ClassVar[int] = SCALE_BYTES

    def encode(self, values: Tensor, generator: torch.Generator, towards_zero: bool) -> tuple[Tensor, Tensor]:
        """Return integers and their scale."""
        largest = values.abs().max() if values.numel() else values.new_zeros(())
        scale = largest / _LEVELS
        if not float(scale):
            return torch.zeros_like(values, dtype=torch.int8), values.new_zeros(())
        steps = values.double() / scale.double()
        if towards_zero:
            steps = steps.trunc()
        elif self.rounding == "nearest":
            steps = steps.round()
        else:
            chance = torch.rand(steps.shape, generator=generator, dtype=torch.float64)
            steps = (steps + chance.to(steps.device)).floor()
        return steps.clamp(-_LEVELS, _LEVELS).to(torch.int8), scale

    def nbytes(self, numbers: int) -> int:
        """Return a byte a number, and four for the scale."""
        return numbers + self.scale_bytes
