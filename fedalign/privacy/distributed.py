"""Skellam noise as a mechanism: every client adds its share, and no server has to be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedalign.privacy.distributed_noise import SkellamCode
from fedalign.privacy.events import Event
from fedalign.privacy.mechanism import DistributedMechanism, Integers, Scale
from fedalign.privacy.noise import Vector
from fedalign.privacy.rotation import padded_size, random_signs
from fedalign.privacy.rounding import Rounding
from fedalign.privacy.scheme import Sampling
from fedalign.privacy.skellam import SkellamEvent
from fedalign.rng import Streams

_ROTATION = "rotation"


@dataclass(frozen=True)
class Skellam(DistributedMechanism):
    """Distributed differential privacy with Skellam noise (Agarwal et al. 2021, arXiv 2110.04995).

    Parameters
    ----------
    rounding : Rounding
    """

    name: ClassVar[str] = "skellam"
    rounding: Rounding

    def event(self, noise_multiplier: float, sampling: Sampling, size: int) -> Event:
        """Return a Skellam release over the smallest cohort; the server knows who is in it."""
        code = self._code(size, Scale(1.0, noise_multiplier), 1)
        return SkellamEvent(code.l1, code.l2, code.variance)

    def check_width(self, size: int, bits: int, minimum: int, cohort: int, noise_multiplier: float) -> None:
        """Refuse a secure sum of too few bits for sums over ``cohort`` clients."""
        self._code(size, Scale(1.0, noise_multiplier), minimum).check(bits, cohort)

    def encoded_length(self, size: int) -> int:
        """Return the next power of two, which the rotation needs."""
        return padded_size(size)

    def encode(
        self, vector: Vector, scale: Scale, minimum: int, public: Streams, secret: np.random.Generator
    ) -> Integers:
        """Return a client's clipped vector, rotated, rounded and with its share of the noise."""
        code = self._code(len(vector), scale, minimum)
        return code.encode(vector, random_signs(code.padded, public.numpy(_ROTATION)), secret)

    def decode(self, total: Integers, size: int, scale: Scale, minimum: int, public: Streams) -> Vector:
        """Return the noisy sum of vectors, rotated back."""
        code = self._code(size, scale, minimum)
        return code.decode(total, random_signs(code.padded, public.numpy(_ROTATION)))

    def _code(self, size: int, scale: Scale, minimum: int) -> SkellamCode:
        return SkellamCode(size, scale.bound, scale.noise_multiplier, minimum, self.rounding)
