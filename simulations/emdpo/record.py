"""What is recorded of a run of the experiments on EM-DPO, and its JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

TOTAL, NUMBER = "total/", "n/"
"""What begins the names of scores of single annotators: a sum, and what it is over."""


@dataclass(frozen=True)
class SeedResult:
    """One arm under one seed.

    Parameters
    ----------
    scores : dict from name to float
        Metrics of the end of the run, and what it was scored by afterwards.
    seconds : float
        Of the whole run.
    """

    scores: dict[str, float]
    seconds: float


Results = Mapping[str, Mapping[int, SeedResult]]
"""Arm, seed."""


def from_json(text: str) -> dict[str, dict[int, SeedResult]]:
    """Return what :func:`simulations.records.to_json` wrote."""
    return {
        name: {int(seed): SeedResult(**values) for seed, values in seeds.items()}
        for name, seeds in json.loads(text).items()
    }


def values_of(found: Results, arm: str, name: str) -> dict[int, float]:
    """Return a score of an arm by seed; nothing where it has none."""
    return {seed: result.scores[name] for seed, result in found.get(arm, {}).items() if name in result.scores}
