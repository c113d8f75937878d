"""Several runs side by side: one estimate for every arm and metric, and differences from a baseline."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedalign.errors import UserError
from fedalign.report.arms import Arm
from fedalign.report.headline import default_headline
from fedalign.report.statistics import LEVEL, Estimate, mean_interval, paired_difference


@dataclass(frozen=True)
class Comparison:
    """What many runs say together.

    Parameters
    ----------
    arms : tuple of Arm
    metrics : tuple of str
        Names from the runs' summaries.
    baseline : Arm or None
        The arm that the others are compared with, seed by seed.
    skipped : tuple of (Path, str)
        Runs that were left out, and why.
    """

    arms: tuple[Arm, ...]
    metrics: tuple[str, ...]
    baseline: Arm | None
    skipped: tuple[tuple[Path, str], ...]

    def estimate(self, arm: Arm, metric: str) -> Estimate | None:
        """Return the arm's mean over seeds, None when it has no such metric."""
        values = list(arm.values(metric).values())
        return mean_interval(values) if values else None

    def difference(self, arm: Arm, metric: str) -> Estimate | None:
        """Return the arm's mean difference from the baseline over shared seeds, None when there is none."""
        if self.baseline is None or arm is self.baseline:
            return None
        return paired_difference(arm.values(metric), self.baseline.values(metric))

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            "confidence": LEVEL,
            "metrics": list(self.metrics),
            "baseline": None if self.baseline is None else self.baseline.label,
            "arms": [self._arm_to_json(arm) for arm in self.arms],
            "skipped": [{"directory": str(path), "reason": reason} for path, reason in self.skipped],
        }

    def _arm_to_json(self, arm: Arm) -> dict[str, Any]:
        content: dict[str, Any] = {
            "label": arm.label,
            "settings": dict(arm.settings),
            "runs": {str(seed): str(run.directory) for seed, run in arm.runs.items()},
            "metrics": {},
            "differences": {},
        }
        for metric in self.metrics:
            estimate, difference = self.estimate(arm, metric), self.difference(arm, metric)
            if estimate is not None:
                values = {str(seed): value for seed, value in arm.values(metric).items()}
                content["metrics"][metric] = {**dataclasses.asdict(estimate), "values": values}
            if difference is not None:
                content["differences"][metric] = dataclasses.asdict(difference)
        return content


def choose_metrics(arms: Sequence[Arm], wanted: Sequence[str] | None) -> tuple[str, ...]:
    """Return the metrics to compare: those wanted, or all of the population that matters most.

    Raises
    ------
    UserError
        If no run has a wanted metric.
    """
    known = list(dict.fromkeys(n for arm in arms for run in arm.runs.values() for n in run.summary.metrics))
    if wanted is None:
        population = default_headline(known).partition("/")[0]
        return tuple(name for name in known if name.startswith(f"{population}/"))
    for name in wanted:
        if name not in known:
            raise UserError(f"metric {name!r}: no run has it; {_nearest(name, known)}")
    return tuple(wanted)


def choose_baseline(arms: Sequence[Arm], label: str | None) -> Arm | None:
    """Return the arm with the given label.

    Raises
    ------
    UserError
        If there is none.
    """
    by_label = {arm.label: arm for arm in arms}
    if label is not None and label not in by_label:
        raise UserError(f"baseline {label!r}: no arm is called so; {_nearest(label, list(by_label))}")
    return None if label is None else by_label[label]


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"there are {', '.join(repr(each) for each in known)}"
