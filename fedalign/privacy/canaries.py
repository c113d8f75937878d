"""Canaries of an audit: directions in which made-up clients or units pull an audited run, each by its own coin."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedalign.privacy.audit_bound import Floats
from fedalign.privacy.canary_audit import canary_directions
from fedalign.rng import Streams


@dataclass(frozen=True)
class Canaries:
    """The canaries of an audited run, clients or units of a client; everything about them follows from the seed.

    All of them take part, so that neither cohorts nor noise depend on the coins. Included ones contribute their
    direction. What a held-out one does instead is the neighbouring relation of the claim: where being there is compared
    with not being there, it adds zeros, which leaves the sum that its absence would; where it is compared with any
    other data, it contributes the opposite, which no data are farther from. (A silent client still has a norm bit if
    the bound adapts, which one that is absent has not; no score is made of these bits.)

    Parameters
    ----------
    count : int
    norm : float
        Of a contribution before clipping, over the clipping bound that the phase starts with. Above 1 a missing clip
        shows; far above the root of the number of canaries it is found by the custodian, which takes no sum that
        clipped contributions cannot have.
    seed : int
    opposed : bool
        Whether the claim is about data that are replaced.
    stages : tuple of tuple of str
        Which stages canaries take part in, dealt out to them in turn; an empty tuple is all. A canary in more stages
        than any real unit would be protected less than they are.
    """

    count: Annotated[int, Field(ge=4)]
    norm: Annotated[float, Field(gt=1)]
    seed: Annotated[int, Field(ge=0)]
    opposed: bool
    stages: tuple[tuple[str, ...], ...] = ((),)

    @cached_property
    def included(self) -> NDArray[np.bool_]:
        """Whose coin came up, shape (count,)."""
        return Streams(self.seed).numpy("audit/coins").random(self.count) < 0.5

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Their names, sorted."""
        width = len(str(self.count - 1))
        return tuple(f"canary/{number:0{width}}" for number in range(self.count))

    @cached_property
    def signs(self) -> Floats:
        """How often each adds its direction, shape (count,): once, not at all, or the opposite."""
        return np.where(self.included, 1.0, -float(self.opposed))

    def stages_of(self, number: int) -> tuple[str, ...]:
        """Return the stages that a canary takes part in; empty is all."""
        return self.stages[number % len(self.stages)]

    def within(self, stage: str | None) -> NDArray[np.bool_]:
        """Tell which canaries take part in a stage, shape (count,); all do where a phase has none."""
        theirs = [self.stages_of(number) for number in range(self.count)]
        return np.array([stage is None or not stages or stage in stages for stages in theirs])

    def direction(self, number: int, phase: str, size: int) -> Floats:
        """Return a canary's unit vector in a phase, shape (size,); the same in all rounds."""
        generator = Streams(self.seed, phase, client=self.names[number]).numpy("audit/direction")
        return canary_directions(1, size, generator).reshape(-1)
