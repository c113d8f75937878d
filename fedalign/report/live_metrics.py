"""A run's metrics as they come in: curves over all groups, and every group's last values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fedalign.metrics.record import Metric


@dataclass(frozen=True)
class FailedRound:
    """A round in which clients gave nothing."""

    phase: str
    round: int
    failed: int


class LiveMetrics:
    """What a page about a running run shows of ``metrics.jsonl``; memory grows with rounds, not with groups.

    Attributes
    ----------
    curves : dict from metric name to (dict from cumulative round to value)
        Over all groups; of two values at one round the later one counts.
    groups : dict from group to (dict from metric name to last value)
    last : dict from metric name to last value
        Over all groups, without what the server measured of itself.
    failed : list of FailedRound
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything, as when the file begins anew."""
        self.curves: dict[str, dict[int, float]] = {}
        self.groups: dict[str, dict[str, float]] = {}
        self.last: dict[str, float] = {}
        self.failed: list[FailedRound] = []
        self._starts: dict[str, int] = {}
        self._end = 0

    @property
    def starts(self) -> list[int]:
        """Cumulative rounds before each phase."""
        return list(self._starts.values())

    def add(self, metrics: Iterable[Metric]) -> None:
        """Take metrics up in the order in which they were recorded."""
        for metric in metrics:
            # A phase goes on where the one before it ended.
            step = self._starts.setdefault(metric.phase, self._end) + metric.round
            self._end = max(self._end, step)
            if metric.group is not None:
                self.groups.setdefault(metric.group, {})[metric.name] = metric.value
                continue
            self.curves.setdefault(metric.name, {})[step] = metric.value
            if metric.scope != "server":
                self.last[metric.name] = metric.value
            elif metric.name == "clients_failed" and metric.value > 0:
                self.failed.append(FailedRound(metric.phase, metric.round, int(metric.value)))
