"""Numbers as unsigned words whose sum modulo 2^bits is the sum of the numbers, or an error instead of a wrap."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.unsignedinteger[Any]]


def word_type(bits: int) -> np.dtype[np.unsignedinteger[Any]]:
    """Return the little-endian unsigned type of ``bits``, 32 or 64."""
    return np.dtype(f"<u{bits // 8}")


@dataclass(frozen=True)
class ModularIntegers:
    """Integers as words modulo ``2**bits``, two's complement.

    Parameters
    ----------
    bits : int
        32 or 64.
    parties : int
        The most terms that a sum may have.
    """

    bits: Literal[32, 64]
    parties: int

    @property
    def limit(self) -> int:
        """Largest absolute value of a term such that no sum of ``parties`` terms wraps."""
        return ((1 << (self.bits - 1)) - 1) // self.parties

    def encode(self, values: NDArray[np.int64], check: bool) -> Words:
        """Return integers as words.

        Parameters
        ----------
        values : int64 array
        check : bool
            Refuse values above ``limit``. Without it they wrap, which is right only where the caller accounts for
            wrapped sums, as distributed noise mechanisms do (Kairouz et al. 2021, section 4).

        Raises
        ------
        ValueError
            If the values are not int64, or one could make the sum wrap.
        """
        if values.dtype != np.int64:
            raise ValueError(f"integers of type {values.dtype} given, int64 expected")
        if check and values.size and not -self.limit <= int(values.min()) <= int(values.max()) <= self.limit:
            raise ValueError(f"an integer exceeds {self.limit}, of which {self.parties} add up in {self.bits} bits")
        return values.astype("<i8").view("<u8").astype(word_type(self.bits))

    def decode(self, words: Words) -> NDArray[np.int64]:
        """Return the integers in ``[-2**(bits - 1), 2**(bits - 1))`` that words stand for.

        Raises
        ------
        ValueError
            If the words have another width.
        """
        if words.dtype != word_type(self.bits):
            raise ValueError(f"words of type {words.dtype} given, {word_type(self.bits)} expected")
        return words.view(f"<i{self.bits // 8}").astype(np.int64)


@dataclass(frozen=True)
class FixedPoint:
    """Real numbers as multiples of ``2**-fraction_bits``, rounded to the nearest.

    The scaling is by a power of two and thus exact in float64; the only error of a term is the rounding to an
    integer. The sum of the words is exact. Decoding returns the float64 nearest to it, so that a 64-bit sum beyond
    53 bits is rounded as any float64 is (relative error at most ``2**-53``), never wrapped.

    Parameters
    ----------
    bits : int
        Width of a word, 32 or 64.
    fraction_bits : int
        Bits after the binary point.
    parties : int
        The most terms that a sum may have.
    """

    bits: Literal[32, 64]
    fraction_bits: int
    parties: int

    @property
    def integers(self) -> ModularIntegers:
        """Return the code of the scaled values."""
        return ModularIntegers(self.bits, self.parties)

    @property
    def largest(self) -> float:
        """Largest absolute value that ``encode`` takes; ``parties`` of them, scaled, stay below ``2**(bits - 1)``."""
        limit = self.integers.limit
        scaled = float(limit)
        # Above 2^53 the nearest float64 may lie above the limit, which would admit a value that wraps.
        below = scaled if int(scaled) <= limit else math.nextafter(scaled, 0.0)
        return math.ldexp(below, -self.fraction_bits)

    def quantisation_error(self, parties: int) -> float:
        """Return the bound on the absolute error of the sum of ``parties`` terms, before the sum becomes a float64."""
        return parties * math.ldexp(0.5, -self.fraction_bits)

    def encode(self, values: NDArray[np.floating[Any]], towards_zero: bool = False) -> Words:
        """Return values as words.

        Parameters
        ----------
        values : floating array
            Taken as float64.
        towards_zero : bool
            Cut off instead of rounding: the error is up to twice as large, but no vector gets longer.

        Raises
        ------
        ValueError
            If a value is NaN, infinite or above ``largest``; the message does not repeat private values.
        """
        exact = np.asarray(values, dtype=np.float64)
        if not np.isfinite(exact).all():
            raise ValueError("a value is NaN or infinite; a secure sum cannot carry it")
        largest = self.largest
        if exact.size and np.abs(exact).max() > largest:
            raise ValueError(
                f"a value exceeds {largest:g}, the largest of which {self.parties} add up in {self.bits} bits with "
                f"{self.fraction_bits} after the binary point"
            )
        step = np.trunc if towards_zero else np.rint
        scaled = step(np.ldexp(exact, self.fraction_bits)).astype(np.int64)
        return self.integers.encode(scaled, check=True)

    def decode(self, words: Words) -> NDArray[np.float64]:
        """Return the float64 values that words, or a sum of them, stand for.

        Raises
        ------
        ValueError
            If the words have another width.
        """
        return np.ldexp(self.integers.decode(words).astype(np.float64), -self.fraction_bits)
