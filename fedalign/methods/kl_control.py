"""A weight of the divergence that follows the divergence: for runs without a guarantee."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedalign.contribution import Contribution
from fedalign.metrics.record import decode

_MOST = 0.2
"""Largest relative error that counts."""


@dataclass(frozen=True)
class AdaptiveKL:
    """Proportional control of the weight (Ziegler et al. 2019, section 2.2), once a round, on the server.

    Parameters
    ----------
    target : float
        Wanted divergence, in nats a response.
    horizon : float
        Responses over which an error of 20 % moves the weight by 20 %.
    """

    target: Annotated[float, Field(gt=0)]
    horizon: Annotated[float, Field(gt=0)]

    def next(self, coefficient: Tensor, total: Contribution) -> Tensor:
        """Return the weight after a round, scalar; as it was where the round's divergence is not told."""
        sums = [item for item in decode(total.scalars) if item.name == "train/kl"]
        responses = sum(item.n for item in sums)
        if not responses:
            return coefficient
        mean = sum(item.total for item in sums) / responses
        error = min(max(mean / self.target - 1, -_MOST), _MOST)
        # Not below 0, however many responses a round has.
        return torch.clamp(coefficient * (1 + error * responses / self.horizon), min=0.0)
