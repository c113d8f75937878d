"""Contributions as vectors of words for a secure sum, and the sum of them as numbers again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedalign.federation.messages import Instruction, Terms
from fedalign.federation.secure.fixed_point import ModularIntegers, Words
from fedalign.federation.secure.settings import SecAgg
from fedalign.privacy.mechanism import DistributedMechanism, Scale
from fedalign.privacy.protection import Protection
from fedalign.rng import Streams
from fedalign.template import Vector


@dataclass(frozen=True)
class WordCode:
    """How a client's vector becomes words, and the sum of words a vector.

    Parameters
    ----------
    settings : SecAgg
    mechanism : DistributedMechanism or None
        Adds noise on the client; None leaves the numbers exact.
    clipped : bool
        Whether a vector's length is bounded; rounding must not lengthen it then.
    """

    settings: SecAgg
    mechanism: DistributedMechanism | None
    clipped: bool = False

    def length(self, size: int) -> int:
        """Return how many words a vector of ``size`` numbers becomes."""
        return size if self.mechanism is None else self.mechanism.encoded_length(size)

    def encode(self, vector: Vector, terms: Terms, public: Streams, secret: np.random.Generator) -> Words:
        """Return a client's words.

        Integers with noise may wrap: the width was chosen so that sums do not, and a client that refused for its own
        value's sake would tell of it.

        Raises
        ------
        ValueError
            If a number without noise is too large for the sum of a cohort not to wrap.
        """
        if self.mechanism is None:
            return self.settings.codec(max(1, terms.cohort)).encode(vector, towards_zero=self.clipped)
        scale = Scale(terms.bound, terms.noise_multiplier)
        integers = self.mechanism.encode(vector, scale, self.settings.minimum, public, secret)
        return ModularIntegers(self.settings.bits, max(1, terms.cohort)).encode(integers, check=False)

    def decode(self, words: Words, terms: Terms, public: Streams) -> Vector:
        """Return the sum of vectors that a sum of words stands for, shape (terms.size,)."""
        cohort = max(1, terms.cohort)
        if self.mechanism is None:
            return self.settings.codec(cohort).decode(words)
        integers = ModularIntegers(self.settings.bits, cohort).decode(words)
        scale = Scale(terms.bound, terms.noise_multiplier)
        return self.mechanism.decode(integers, terms.size, scale, self.settings.minimum, public)


def word_code(privacy: Protection) -> WordCode | None:
    """Return the code of a run's secure sums; None where sums are not secure."""
    secure, mechanism = privacy.secure, privacy.mechanism
    if not isinstance(secure, SecAgg):
        return None
    distributed = mechanism if isinstance(mechanism, DistributedMechanism) else None
    return WordCode(secure, distributed, privacy.clip is not None)


def public_streams(seed: int, order: Instruction) -> Streams:
    """Return the streams of what the clients and the server of one exchange draw alike."""
    return Streams(seed, f"exchange/{order.phase}", order.round)
