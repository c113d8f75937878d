"""What is recorded of a run of the group-reward experiment, and its JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Scores:
    """How a policy serves groups on one kind of question, or of group.

    Parameters
    ----------
    alignment, alignment_worst : float
        Alignment score of the policy's answers with those that groups gave: mean over groups, and the lowest.
    reward, reward_worst : float
        Share of a group that gives the answer which the policy draws, likewise.
    kl : float
        Divergence of the policy's answers from the reference's, in nats a question.
    """

    alignment: float
    alignment_worst: float
    reward: float
    reward_worst: float
    kl: float


@dataclass(frozen=True)
class SeedResult:
    """One arm under one seed.

    Parameters
    ----------
    held_out : Scores
        Training groups, questions that nobody was asked in training.
    asked : Scores
        Training groups, questions of which the policy's training drew its own.
    unseen : Scores
        Groups that took no part, held-out questions.
    groups : dict from group to float
        Alignment score of each training group on held-out questions.
    fairness : float
        Fairness index of the alignment scores on held-out questions.
    seconds : float
        Of the whole run.
    """

    held_out: Scores
    asked: Scores
    unseen: Scores
    groups: dict[str, float]
    fairness: float
    seconds: float


Results = Mapping[str, Mapping[int, SeedResult]]
"""Arm, seed."""


def from_json(text: str) -> dict[str, dict[int, SeedResult]]:
    """Return what :func:`to_json` wrote."""
    return {
        name: {
            int(seed): SeedResult(
                **{**values, **{key: Scores(**values[key]) for key in ("held_out", "asked", "unseen")}}
            )
            for seed, values in seeds.items()
        }
        for name, seeds in json.loads(text).items()
    }
