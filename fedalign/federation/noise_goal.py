"""The noise multiplier of phases that share a budget; what was found once is kept for the same question."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

from fedalign.privacy.calibration import noise_multiplier_for
from fedalign.privacy.ledger import Entry, Ledger, Relation, Unit


@dataclass(frozen=True)
class Goal:
    """What noise is sought for; two goals are one if they plan the same releases to the same units at the same noise.

    Parameters
    ----------
    epsilon : float
    unit : Unit
    relation : Relation
    delta : float
    sets : tuple of (str, frozenset of str)
        Names and units of the declared sets.
    entries : tuple of Entry
        The plan at noise multiplier 1.
    plan : callable
        From a noise multiplier to the entries.
    """

    epsilon: float
    unit: Unit
    relation: Relation
    delta: float
    sets: tuple[tuple[str, frozenset[str]], ...]
    entries: tuple[Entry, ...]
    plan: Callable[[float], list[Entry]] = field(compare=False)


@functools.lru_cache(maxsize=32)
def noise_for(goal: Goal) -> float:
    """Return the noise multiplier for a goal; a run asks for it before it starts, and again when it does.

    Raises
    ------
    UserError
        If no noise keeps within the budget.
    """
    blank = Ledger(goal.unit, goal.relation, goal.delta)
    for name, units in goal.sets:
        blank.declare(name, units)
    return noise_multiplier_for(goal.epsilon, goal.plan, blank.copy)
