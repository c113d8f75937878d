"""A run's metrics as curves over rounds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedalign.metrics.record import Metric


@dataclass(frozen=True)
class Curve:
    """One metric over rounds.

    Parameters
    ----------
    steps : int64 array, shape (T,)
        Cumulative rounds, increasing: a phase goes on where the phase before it ended.
    values : float64 array, shape (T,)
    """

    steps: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]


class Curves:
    """All curves of a run, by metric name and group.

    Parameters
    ----------
    metrics : iterable of Metric
        In the order they were recorded; of two values at one step the later one counts.
    """

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = tuple(metrics)
        rounds: dict[str, int] = {}
        for metric in self._metrics:
            rounds[metric.phase] = max(rounds.get(metric.phase, 0), metric.round)
        self._starts: dict[str, int] = {}
        done = 0
        for phase, last in rounds.items():
            self._starts[phase] = done
            done += last
        self._points: dict[tuple[str, str | None], dict[int, float]] = {}
        for metric in self._metrics:
            points = self._points.setdefault((metric.name, metric.group), {})
            points[self._starts[metric.phase] + metric.round] = metric.value

    @property
    def phases(self) -> dict[str, int]:
        """Cumulative rounds before each phase, phases in order."""
        return dict(self._starts)

    def of_phase(self, *phases: str) -> Curves:
        """Return the curves of one phase alone, or of several; their steps are these phases' own rounds."""
        return Curves(metric for metric in self._metrics if metric.phase in phases)

    def names(self) -> list[str]:
        """Names that have a value over all groups, in the order they were recorded."""
        return [name for name, group in self._points if group is None]

    def get(self, name: str, group: str | None = None) -> Curve | None:
        """Return the curve of ``name`` over all groups or in one, None when nothing was recorded."""
        points = self._points.get((name, group))
        if points is None:
            return None
        steps = sorted(points)
        return Curve(np.array(steps, dtype=np.int64), np.array([points[step] for step in steps], dtype=np.float64))

    def extremes(self, name: str) -> tuple[Curve, Curve] | None:
        """Return the lowest and the highest group's value at every step, None when no group was recorded."""
        at: dict[int, list[float]] = {}
        for (found, group), points in self._points.items():
            if found == name and group is not None:
                for step, value in points.items():
                    at.setdefault(step, []).append(value)
        if not at:
            return None
        steps = np.array(sorted(at), dtype=np.int64)
        low = np.array([min(at[step]) for step in sorted(at)], dtype=np.float64)
        high = np.array([max(at[step]) for step in sorted(at)], dtype=np.float64)
        return Curve(steps, low), Curve(steps, high)
