"""Metrics as sums: what clients add up, and the finished numbers that a run records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

Scope = Literal["train", "eval", "test", "server"]

_PREFIX = "metric"
_SEPARATOR = "|"

METRIC = _PREFIX + _SEPARATOR
"""What the names of metric sums begin with."""


@dataclass(frozen=True)
class Metric:
    """One finished number of a run; one line of ``metrics.jsonl``.

    Parameters
    ----------
    phase : str
    round : int
        0 is before the first round of the phase.
    scope : {"train", "eval", "test", "server"}
        ``train``: sums from local training; ``eval``: an evaluation on the way; ``test``: the evaluation
        after the last round; ``server``: what the server itself knows (seconds, bytes, norms).
    group : str or None
        The group that the value belongs to, None for a value over all of them.
    name : str
        Populations come first: ``train/``, ``test/`` or ``unseen/``, as in ``unseen/alignment_score``.
    value : float
    n : float
        How many terms the value is a mean of.
    """

    phase: str
    round: int
    scope: Scope
    group: str | None
    name: str
    value: float
    n: float


@dataclass(frozen=True)
class MetricSum:
    """A metric on its way: numerator and denominator of one name in one group, meant to be added."""

    name: str
    group: str
    total: float
    n: float


def encode(sums: Iterator[MetricSum] | list[MetricSum]) -> dict[str, float]:
    """Write metric sums as named scalars that a contribution can carry."""
    scalars: dict[str, float] = {}
    for item in sums:
        stem = _SEPARATOR.join((_PREFIX, item.name, item.group))
        for key, value in ((stem + "|sum", item.total), (stem + "|n", item.n)):
            scalars[key] = scalars.get(key, 0.0) + value
    return scalars


def decode(scalars: Mapping[str, float]) -> list[MetricSum]:
    """Read back the metric sums from a total's scalars, sorted by name and group; one of no terms is left out.

    Raises
    ------
    ValueError
        If a denominator has no numerator, or a name no group.
    """
    found = []
    for key, n in scalars.items():
        if not (key.startswith(METRIC) and key.endswith("|n")):
            continue
        stem = key[: -len("|n")]
        parts = stem.split(_SEPARATOR, 2)
        if len(parts) < 3 or stem + "|sum" not in scalars:
            raise ValueError(f"{key}: is no metric sum")
        if n > 0:
            found.append(MetricSum(parts[1], parts[2], scalars[stem + "|sum"], n))
    return sorted(found, key=lambda item: (item.name, item.group))
