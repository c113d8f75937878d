"""Preferences beyond a client's own, so that the mean of clients that want one thing each can still tell things apart.

A client whose users all want the same could move the weights towards that whatever is stated. If some of its prompts
are answered under other preferences, drawn at random and rewarded by the public measures, what it learns depends on
what is stated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedalign.methods.stated_preference import Preferences

_LEAST = 1e-6
"""Weight of a side that is drawn, at least: one without weight is none."""


@dataclass(frozen=True)
class Coverage:
    """The ``coverage`` block of online learning.

    Parameters
    ----------
    share : float
        Probability that a prompt is answered under another preference than its user's.
    statements : tuple of str or None
        What these are drawn from, evenly; None is every combination of one side a dimension.
    concentration : float or None
        Of a Dirichlet distribution of the weights of the sides that are drawn; None weighs each 1.
    """

    share: Annotated[float, Field(ge=0, le=1)]
    statements: Annotated[tuple[str, ...], Field(min_length=1)] | None
    concentration: Annotated[float, Field(gt=0)] | None

    def check(self, preferences: Preferences) -> None:
        """Refuse statements that name no side that there is.

        Raises
        ------
        UserError
        """
        for statement in self.statements or ():
            preferences.vector(statement, "method.merging.learning.coverage.statements")

    def replaced(self, vectors: Tensor, preferences: Preferences, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return preferences of which some are others, and which.

        Parameters
        ----------
        vectors : float32 tensor, shape (B, n)
        preferences : Preferences
        generator : torch.Generator

        Returns
        -------
        vectors : float32 tensor, shape (B, n)
        covered : bool tensor, shape (B,)
        """
        covered = torch.rand(len(vectors), generator=generator) < self.share
        known = [preferences.vector(s, "coverage") for s in self.statements or preferences.statements]
        drawn = torch.stack(known)[torch.randint(len(known), (len(vectors),), generator=generator)]
        if self.concentration is not None:
            weights = self._dirichlet(drawn > 0, int(torch.randint(2**62, (1,), generator=generator)))
            drawn = weights * (drawn > 0).sum(1, keepdim=True)
        return torch.where(covered[:, None], drawn, vectors), covered

    def _dirichlet(self, there: Tensor, seed: int) -> Tensor:
        """Return weights of the sides that are there, positive and summing to 1 in each row; 0 elsewhere."""
        assert self.concentration is not None
        # NumPy's, since torch draws gamma variables from its default generator alone; as logarithms, since those of a
        # small concentration are below all numbers.
        generator, shape = np.random.default_rng(seed), tuple(there.shape)
        logs = np.log(generator.standard_gamma(self.concentration + 1, shape))
        logs += np.log1p(-generator.random(shape)) / self.concentration
        weights = torch.from_numpy(logs).masked_fill(~there, -torch.inf).softmax(1)
        weights = torch.where(there, weights.clamp(min=_LEAST), 0.0)
        return (weights / weights.sum(1, keepdim=True)).float()
