"""Metrics that are released as sums: which evaluations tell of them, and whether their sums can show anything."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

from fedalign.errors import UserError
from fedalign.federation.directory import ClientDirectory
from fedalign.methods.base import Phase
from fedalign.privacy.metric_release import SummedMetrics, WithheldMetrics
from fedalign.privacy.protection import Protection

_UNSEEN = "unseen/"
_LEAST = 0.5
_DEVIATIONS = 3


def tells(phase: Phase[Any], names: Collection[str]) -> bool:
    """Tell whether a phase's evaluation may hold one of some metrics, as values between 0 and 1."""
    return bool(phase.evaluated) and (phase.bounded_metrics is None or not phase.bounded_metrics.isdisjoint(names))


def is_evaluated(privacy: Protection, phase: Phase[Any], names: Collection[str], directory: ClientDirectory) -> bool:
    """Tell whether a phase is evaluated at all: not where that would cost budget and tell nothing."""
    if isinstance(privacy.metrics, WithheldMetrics) or not directory.evaluated_for(phase):
        return False
    return not _bounded(privacy) or tells(phase, names)


def evaluations(rounds: int, every: int) -> int:
    """Return how many times a phase is evaluated: before its first round, after every so many, and after its last."""
    return 1 + rounds // every + (rounds % every > 0)


def count_floor(noise_multiplier: float, metrics: int) -> float:
    """Return the least number of clients, as a noisy sum counts them, whose metrics are shown.

    A number that noise alone could make says nothing.
    """
    return max(_LEAST, _DEVIATIONS * noise_multiplier * metric_bound(metrics))


def metric_bound(metrics: int) -> float:
    """Return the L2 norm of one client's values and counts, each at most 1."""
    return math.sqrt(2 * metrics)


def told_of(privacy: Protection, phases: Sequence[Phase[Any]], names: Sequence[str]) -> tuple[str, ...]:
    """Return those of some metrics that an evaluation may tell of, each once: one named twice would be added twice."""
    return tuple(
        name for name in dict.fromkeys(names) if not _bounded(privacy) or any(tells(phase, [name]) for phase in phases)
    )


def check_metrics(
    privacy: Protection, phases: Sequence[Phase[Any]], names: Sequence[str], directory: ClientDirectory
) -> None:
    """Refuse metrics that are paid for and never shown.

    Parameters
    ----------
    privacy : Protection
    phases : sequence of Phase
    names : sequence of str
        What is asked for; where the settings name none, one that an evaluation tells of will do.
    directory : ClientDirectory

    Raises
    ------
    UserError
        If no evaluation tells of a metric, its sums are over too few clients for their noise, or too few clients are
        evaluated for a secure sum.
    """
    release = privacy.metrics
    if not isinstance(release, SummedMetrics):
        return
    told = told_of(privacy, phases, names)
    untold = [name for name in names if name not in told]
    if untold and (release.names or not told):
        _refuse_untold(phases, untold)
    if privacy.secure is not None:
        _check_secure(privacy, phases, told, directory, privacy.secure.minimum)
    floor = count_floor(release.noise_multiplier, len(told))
    reached = max((_reached(phases, name, directory) for name in told), default=0)
    if privacy.private and reached < floor:
        raise UserError(
            f"privacy.metrics.noise_multiplier={release.noise_multiplier:g}: the noise on {len(told)} metrics drowns "
            f"sums over fewer than {floor:.3g} clients, of which there are {reached}, so that nothing could be shown; "
            "lower it, name one metric in privacy.metrics.names, evaluate more clients (partition.unseen), or set "
            "privacy/metrics=withheld"
        )


def _bounded(privacy: Protection) -> bool:
    """Whether metrics are cut to lie between 0 and 1, which makes of others what they are not."""
    return privacy.private and isinstance(privacy.metrics, SummedMetrics)


def _refuse_untold(phases: Sequence[Phase[Any]], untold: Sequence[str]) -> None:
    known = sorted(set().union(*(phase.bounded_metrics or () for phase in phases if phase.evaluated)))
    choice = f"name others in privacy.metrics.names ({', '.join(known)})" if known else "there are no others"
    raise UserError(
        f"privacy/metrics=summed: no evaluation tells of {' and '.join(untold)} as a value between 0 and 1, as noisy "
        f"sums need it; {choice}, or set privacy/metrics=withheld"
    )


def _reached(phases: Sequence[Phase[Any]], name: str, directory: ClientDirectory) -> int:
    """Return how many clients a metric is of, at most."""
    clients = (directory.evaluated_for(phase) for phase in phases if tells(phase, [name]))
    unseen = set(directory.unseen)
    return max((sum(not name.startswith(_UNSEEN) or c in unseen for c in asked) for asked in clients), default=0)


def _check_secure(
    privacy: Protection, phases: Sequence[Phase[Any]], names: Sequence[str], directory: ClientDirectory, minimum: int
) -> None:
    for phase in phases:
        clients = len(directory.evaluated_for(phase))
        if clients < minimum and is_evaluated(privacy, phase, names, directory):
            raise UserError(
                f"privacy.secure.minimum={minimum}: phase {phase.name!r} has too few clients to evaluate ({clients}), "
                "and a sum over fewer than the minimum is never opened; raise partition.unseen, lower the minimum, or "
                "set privacy/metrics=withheld"
            )
