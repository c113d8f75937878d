"""How learning rate and rounds on real annotators were chosen: by judgments that were held out of training."""

from __future__ import annotations

from simulations.emdpo.record import Results, values_of

TUNING_SEED = 100
"""Of the search; no reported run has it."""
SELECTION = "train/log_likelihood"
"""Likelihood of training judgments that nothing was trained on, and that told no type."""
GRID = tuple((f"method.local.lr={lr}",) for lr in (10, 30, 100, 300))
"""The same for one type and for several; rounds are fixed, so that the rate also says how far training goes."""
SEARCHED = (1, 2)
"""Numbers of types that were searched for; three and four take what was chosen for two."""

SOURCES = ("e2e", "llmfao")
"""Data that were searched on; a part of E2E takes what all of it got."""


def place_of(source: str, types: int, number: int) -> str:
    """Return the name of the arm of a point of the grid."""
    return f"{source}_k{types}_{number}"


def best(found: Results, source: str, types: int) -> tuple[str, ...]:
    """Return the point of the grid that did best for a number of types."""
    searched = min(types, max(SEARCHED))
    whole = source if source in SOURCES else SOURCES[0]
    scores = [values_of(found, place_of(whole, searched, n), SELECTION)[TUNING_SEED] for n in range(len(GRID))]
    return GRID[scores.index(max(scores))]
