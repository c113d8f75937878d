"""Noise for a budget, and releases for what is left of one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

from fedalign.errors import UserError
from fedalign.privacy.ledger import Entry, Ledger

_LEAST_NOISE = 1e-2
_MOST_NOISE = 1e5
_PRECISION = 1e-3
_SECANTS = 12
_MOST_RELEASES = 10**6


def noise_multiplier_for(
    epsilon: float, plan: Callable[[float], Iterable[Entry]], make_ledger: Callable[[], Ledger]
) -> float:
    """Return the smallest noise multiplier whose plan keeps within a budget, rounded up.

    Parameters
    ----------
    epsilon : float
        The budget; positive.
    plan : callable
        From a noise multiplier to the entries of the whole run.
    make_ledger : callable
        Returns a fresh ledger.

    Returns
    -------
    float
        At most one part in a thousand above the smallest there is; never below 0.01.

    Raises
    ------
    UserError
        If the budget is not positive, or no noise multiplier up to 1e5 keeps within it.
    """
    _check_budget(epsilon)

    def spent_by_rdp(noise_multiplier: float) -> float:
        return make_ledger().epsilon_rdp(plan(noise_multiplier))

    def spent(noise_multiplier: float) -> float:
        return make_ledger().epsilon(plan(noise_multiplier))

    if spent(_MOST_NOISE) > epsilon:
        raise UserError(
            f"privacy.epsilon={epsilon} cannot be reached with a noise multiplier up to {_MOST_NOISE:g}; "
            "raise epsilon, or release less"
        )
    # Rényi curves cost little, and what they ask for is only a little too much.
    return _smallest(spent, epsilon, _smallest(spent_by_rdp, epsilon, 1.0, 0.02), _PRECISION)


def releases_within(epsilon: float, ledger: Ledger, entry: Entry) -> int:
    """Return how many more times an entry fits into a budget, at most a million times.

    Raises
    ------
    UserError
        If the budget is not positive.
    ValueError
        If the entry's event is cumulative: it is stated again, not repeated.
    """
    _check_budget(epsilon)
    if entry.event.cumulative:
        raise ValueError(f"{type(entry.event).__name__} is not repeated; ask the ledger for the epsilon of another")

    def fits(times: int) -> bool:
        return ledger.epsilon([replace(entry, count=times * entry.count)]) <= epsilon

    if not fits(1):
        return 0
    low, high = 1, 2
    while high <= _MOST_RELEASES and fits(high):
        low, high = high, 2 * high
    if high > _MOST_RELEASES:
        return _MOST_RELEASES
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _smallest(spent: Callable[[float], float], budget: float, start: float, precision: float) -> float:
    """Return a noise multiplier that keeps within the budget, less than ``1 + precision`` above one that does not.

    By the secant rule in logarithms, aimed in turn a little above and a little below the root, then by bisection.
    Between 0.01 and 1e5, either of which is returned where the budget lies beyond.
    """
    fails, fits = (_LEAST_NOISE, spent(_LEAST_NOISE)), (_MOST_NOISE, 0.0)
    if fails[1] <= budget:
        return _LEAST_NOISE
    noise, steps = start, 0
    while fits[0] > fails[0] * (1 + precision):
        cost = spent(noise)
        within = cost <= budget
        fails, fits = (fails, (noise, cost)) if within else ((noise, cost), fits)
        steps += 1
        if fits[1] == 0 or not math.isfinite(fails[1]) or steps > _SECANTS:
            noise = math.sqrt(fails[0] * fits[0])
            continue
        share = math.log(fails[1] / budget) / math.log(fails[1] / fits[1])
        aim = fails[0] * (fits[0] / fails[0]) ** share * (1 + precision / 3) ** (-1 if within else 1)
        noise = min(max(aim, fails[0] * (1 + precision / 3)), fits[0] / (1 + precision / 3))
    return fits[0]


def _check_budget(epsilon: float) -> None:
    if not epsilon > 0:
        raise UserError(f"privacy.epsilon={epsilon} must be positive")
