"""From metric sums to the numbers that a run records: means by group, and values over groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fedalign.methods.base import Phase
from fedalign.metrics.record import Metric, MetricSum, Scope


def means_of_all(phase: str, number: int, scope: Scope, sums: Sequence[MetricSum]) -> list[Metric]:
    """Return the means of metrics that are told for everybody together."""
    return [Metric(phase, number, scope, None, s.name, s.total / s.n, s.n) for s in sums]


def means_by_group(
    phase: Phase[Any], number: int, scope: Scope, sums: Sequence[MetricSum], tensors: Mapping[str, Tensor]
) -> list[Metric]:
    """Return the means by group, and what the phase makes of them over all groups."""
    name = phase.name
    by_group = [Metric(name, number, scope, s.group, s.name, s.total / s.n, s.n) for s in sums]
    overall = phase.summarise(sums, tensors) if sums else {}
    return by_group + [
        Metric(name, number, scope, None, key, value, float(_groups(sums, key))) for key, value in overall.items()
    ]


def _groups(sums: Sequence[MetricSum], name: str) -> int:
    """Return how many groups the population of a metric has; populations come first in its name."""
    population = name.partition("/")[0]
    return len({item.group for item in sums if item.name.partition("/")[0] == population})
