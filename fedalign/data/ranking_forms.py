"""How a judgment is drawn from utilities, and how much of it is told: tiers of complete, partial and tied rankings."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Literal

import numpy as np
import numpy.typing as npt

from fedalign.errors import UserError

Form = Literal["pair", "best", "full", "top"]
"""What a judgment tells: which of two is better, the best one, the whole order, or the ``top`` best in order."""

Tiers = tuple[int, ...]
"""Tier of each response; 0 is best, without gaps."""

MOST_ORDERS = 5040
"""Most orders that a judgment may agree with, since each is a term of its likelihood: those of seven that tie."""


def check_form(form: Form, responses: int, top: int | None) -> None:
    """Check that menus are large enough for what a judgment tells.

    Raises
    ------
    UserError
        If pairs are asked for of menus that are not pairs, or ``top`` is missing, too large or of no use.
    """
    if form == "pair" and responses != 2:
        raise UserError(f"data.form=pair: a pair has two responses, but data.responses={responses}; set it to 2")
    if form == "top" and (top is None or not 1 <= top < responses):
        raise UserError(f"data.top={top}: it must be between 1 and data.responses - 1, which is {responses - 1}")
    if form != "top" and top is not None:
        raise UserError(f"data.top={top} is of no use with data.form={form}; set data.form=top or data.top=null")


def drawn_tiers(
    utilities: npt.ArrayLike, sharpness: float | None, rng: np.random.Generator, decimals: int = 9
) -> Tiers:
    """Draw a judgment from the Plackett-Luce model.

    Gumbel noise is added to the utilities and the sums are sorted, which gives the order y_1, ..., y_S the probability
    prod_t exp(sharpness * u(y_t)) / sum_{l >= t} exp(sharpness * u(y_l)).

    Parameters
    ----------
    utilities : array, shape (S,)
    sharpness : float or None
        Factor of the utilities; None is without noise, and responses of the same utility are then in one tier.
    rng : Generator
        Not drawn from without noise.
    decimals : int
        Utilities that agree up to this many decimals are the same.

    Returns
    -------
    tuple of int, length S
        With noise all are different.
    """
    values = np.asarray(utilities, dtype=np.float64)
    values = np.round(values, decimals) if sharpness is None else sharpness * values + rng.gumbel(size=values.shape)
    _, ranks = np.unique(-values, return_inverse=True)
    return tuple(int(rank) for rank in ranks)


def told(tiers: Tiers, form: Form, top: int | None) -> Tiers:
    """Return what a judgment of this form tells of a ranking.

    Parameters
    ----------
    tiers : tuple of int, length S
    form : Form
        ``pair`` and ``full`` tell all; ``best`` is ``top`` with 1.
    top : int or None
        How many of the best keep their tiers; the others are in the last tier. Responses that tie are told together,
        so that a tie may make them more.

    Returns
    -------
    tuple of int, length S
    """
    if form in ("pair", "full"):
        return tiers
    limit = 1 if form == "best" or top is None else top
    # The first tier that has enough responses before it.
    last = min((tier for tier in tiers if sum(other < tier for other in tiers) >= limit), default=max(tiers))
    return tuple(min(tier, last) for tier in tiers)


def with_ties(tiers: Tiers, ties: float, rng: np.random.Generator) -> Tiers:
    """Merge each tier into the one above it with probability ``ties``, independently.

    Parameters
    ----------
    tiers : tuple of int, length S
    ties : float
        In [0, 1).
    rng : Generator
        Not drawn from if ``ties`` is 0.

    Returns
    -------
    tuple of int, length S
        All 0 where everything was merged; see ``says_something``.
    """
    if ties == 0.0:
        return tiers
    apart = rng.random(max(tiers)) >= ties
    level = [0, *itertools.accumulate(int(keep) for keep in apart)]
    return tuple(level[tier] for tier in tiers)


def says_something(tiers: Tiers) -> bool:
    """Say whether a judgment has at least two tiers."""
    return max(tiers) > 0


def agreeing_orders(tiers: Tiers) -> int:
    """Return how many orders of the responses agree with a judgment, but for those that only permute its last tier."""
    sizes = Counter(tiers)
    return math.prod(math.factorial(size) for tier, size in sizes.items() if tier < max(tiers))


__all__ = [
    "MOST_ORDERS",
    "Form",
    "Tiers",
    "agreeing_orders",
    "check_form",
    "drawn_tiers",
    "says_something",
    "told",
    "with_ties",
]
