"""What is recorded of a run of the privacy experiment, and its JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class SeedResult:
    """One arm under one seed.

    Parameters
    ----------
    score, worst : float
        Mean alignment score over the unseen countries, and the lowest.
    untrained : float or None
        Mean score before the first round; None where no metric is let out.
    groups : dict from country to float
    epsilon, noise_multiplier : float or None
        What was spent, and noise over clipping bound; None without noise.
    clients : float
        Clients asked in a round of the last phase, on average.
    seconds : float
        Of the whole run.
    """

    score: float
    worst: float
    untrained: float | None
    groups: dict[str, float]
    epsilon: float | None
    noise_multiplier: float | None
    clients: float
    seconds: float


Results = Mapping[str, Mapping[int, SeedResult]]
"""Arm, seed."""


def from_json(text: str) -> dict[str, dict[int, SeedResult]]:
    """Return what :func:`to_json` wrote."""
    return {
        name: {int(seed): SeedResult(**values) for seed, values in seeds.items()}
        for name, seeds in json.loads(text).items()
    }
