"""How much types help on real annotators: annotators are what is drawn, so they are what is resampled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedalign.rng import Streams
from simulations.emdpo.record import NUMBER, TOTAL, Results

DRAWS = 4000


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def differences(found: Results, arm: str, baseline: str) -> Interval | None:
    """Return by how much an arm predicts a judgment better than another; None where they share no seed.

    Every annotator's difference is the mean over the seeds that both arms have. Annotators are drawn with replacement,
    with all of their judgments, and the interval is between the 2.5 % and 97.5 % quantiles of the mean per judgment.
    """
    ours, theirs = found.get(arm, {}), found.get(baseline, {})
    shared = sorted(set(ours) & set(theirs))
    if not shared:
        return None
    names = sorted(name.removeprefix(TOTAL) for name in ours[shared[0]].scores if name.startswith(TOTAL))
    gained = np.array([[ours[s].scores[TOTAL + n] - theirs[s].scores[TOTAL + n] for n in names] for s in shared])
    judged = np.array([ours[shared[0]].scores[NUMBER + n] for n in names])
    total = gained.mean(0)
    drawn = Streams(0).numpy("bootstrap").integers(len(names), size=(DRAWS, len(names)))
    means = total[drawn].sum(1) / judged[drawn].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(total.sum() / judged.sum()), float(low), float(high))
