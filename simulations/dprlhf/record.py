"""What is recorded of a run of the experiment of private alignment, and its JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Texts:
    """How good the texts are that a model writes to the test prompts.

    Parameters
    ----------
    reward : float
        Mean over the prompts.
    half_width : float
        Of the 95 % interval of that mean, over the prompts of this run.
    win_rate : float
        Share of the prompts on which the judge prefers the text to the pretrained model's; a tie is half a win.
    kl : float
        Divergence from the reference along a response, in nats.
    perplexity : float
        Of the texts, under the reference. The reference is the pretrained model until fine-tuning ends, and the
        fine-tuned one after that.
    distinct_2, rouge_l : float
    """

    reward: float
    half_width: float
    win_rate: float
    kl: float
    perplexity: float
    distinct_2: float
    rouge_l: float


@dataclass(frozen=True)
class SeedResult:
    """One arm under one seed.

    Parameters
    ----------
    pretrained, tuned, aligned : Texts
        Before any training, after fine-tuning, after reinforcement learning.
    curve : tuple of (phase, round, reward)
        Mean reward at every evaluation.
    epsilon, delta : float or None
        What was spent over the whole run; None without noise.
    epsilons, noise_multipliers : dict from phase to float
        What each phase spent, and its noise over the clipping bound; empty without noise.
    seconds : float
        Of the whole run.
    """

    pretrained: Texts
    tuned: Texts
    aligned: Texts
    curve: tuple[tuple[str, int, float], ...]
    epsilon: float | None
    delta: float | None
    epsilons: dict[str, float]
    noise_multipliers: dict[str, float]
    seconds: float

    @property
    def gain(self) -> float:
        """Reward of the aligned model over the pretrained one's."""
        return self.aligned.reward - self.pretrained.reward


Results = Mapping[str, Mapping[int, SeedResult]]
"""Arm, seed."""


def from_json(text: str) -> dict[str, dict[int, SeedResult]]:
    """Return what :func:`to_json` wrote."""
    read = json.loads(text)
    return {name: {int(seed): _result(values) for seed, values in seeds.items()} for name, seeds in read.items()}


def _result(values: dict[str, object]) -> SeedResult:
    texts = {stage: Texts(**values[stage]) for stage in ("pretrained", "tuned", "aligned")}  # type: ignore[arg-type]
    curve = tuple((phase, number, reward) for phase, number, reward in values["curve"])  # type: ignore[attr-defined]
    return SeedResult(**{**values, **texts, "curve": curve})  # type: ignore[arg-type]
