"""The settings of a secure sum, and the numbers that follow from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from fedalign.errors import UserError
from fedalign.federation.secure.fixed_point import FixedPoint
from fedalign.privacy.secure_sum import SecureSum


@dataclass(frozen=True)
class SecAgg(SecureSum):
    """Secure aggregation with masks (Bonawitz et al. 2017) on a sparse graph (SecAgg+, Bell et al. 2020).

    Parameters
    ----------
    bits : int
        Width of the words that are summed, 32 or 64; the sum is modulo ``2**bits``.
    fraction_bits : int
        Bits of a word after the binary point.
    neighbours : int
        How many others each party shares masks and secrets with, even; in a cohort of at most ``neighbours + 1``
        everyone is everyone's neighbour, which is the protocol of 2017.
    threshold : float
        Share of a neighbourhood, the party itself included, that is needed to recover a secret; above one half, so
        that no two disjoint sets of parties can be asked for the two secrets of one party.
    minimum : int
        Fewest parties whose sum may be revealed.
    """

    bits: Literal[32, 64]
    fraction_bits: Annotated[int, Field(ge=0, le=62)]
    neighbours: Annotated[int, Field(ge=2, multiple_of=2)]
    threshold: Annotated[float, Field(gt=0.5, le=1)]
    minimum: Annotated[int, Field(ge=2)]

    def check(self, parties: int) -> None:
        """Refuse a cohort that the settings do not fit.

        Raises
        ------
        UserError
            If ``minimum`` is above the cohort, or the words leave no room for the sum of the cohort.
        """
        if self.minimum > parties:
            raise UserError(f"minimum={self.minimum} of a secure sum but only {parties} clients take part; lower it")
        if self.codec(parties).largest < 1:
            raise UserError(
                f"bits={self.bits} with fraction_bits={self.fraction_bits} leaves no room for the sum of {parties} "
                "values of size 1; lower fraction_bits or take bits=64"
            )

    def codec(self, parties: int) -> FixedPoint:
        """Return the fixed-point code for a cohort of at most ``parties``."""
        return FixedPoint(self.bits, self.fraction_bits, parties)

    def shares_needed(self, neighbourhood: int) -> int:
        """Return how many shares recover a secret that is split over ``neighbourhood`` parties, its owner included."""
        # The rounding keeps 0.56 of 25 at 14, though the product is slightly above 11 in floating point.
        return max(math.ceil(round(self.threshold * neighbourhood, 9)), neighbourhood // 2 + 1)
