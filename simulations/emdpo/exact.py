"""What one can know at most: exact probabilities of the mirrored and the indifferent population.

Items are worth b, 0 and -b to one half of the mirrored annotators and -b, 0 and b to the other half; the indifferent
find all items alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations, permutations, product

from fedalign.data.ranking_forms import Form

_ITEMS = (1.0, 0.0, -1.0)
_HALVES = (1.0, -1.0)

Menu = tuple[float, ...]
Answer = tuple[tuple[int, ...], int]
"""Items of a menu from best to worst, and how many of them, from the best on, the judgment tells."""


def likely(menu: Menu, answer: Answer, weight: float) -> float:
    """Return the probability of an answer from somebody to whom an item x is worth ``weight * x``."""
    order, told = answer
    worth = [math.exp(weight * menu[place]) for place in order]
    return math.prod(worth[t] / sum(worth[t:]) for t in range(told))


def mixed(menus: Sequence[Menu], answers: Sequence[Answer], gap: float) -> float:
    """Return the probability of one annotator's answers in the mirrored population with b = ``gap``."""
    own = [
        math.prod(likely(menu, answer, half * gap) for menu, answer in zip(menus, answers, strict=True))
        for half in _HALVES
    ]
    return sum(own) / len(own)


def divergence(form: Form, judgments: int, gap: float) -> float:
    """Return the divergence of the mirrored population from the indifferent one, in nats a judgment.

    It is what a model that has the mirrored population right gains over one that has not, per judgment of annotators
    of whom so many judgments are seen.

    Parameters
    ----------
    form : {"pair", "best", "full"}
        Pairs are of two of the three items, drawn evenly.
    judgments : int
        Of each annotator.
    gap : float
        b.
    """
    menus = list(combinations(_ITEMS, 2)) if form == "pair" else [_ITEMS]
    total = 0.0
    for seen in product(menus, repeat=judgments):
        for answers in product(*(_answers(form, menu) for menu in seen)):
            one, other = mixed(seen, answers, gap), mixed(seen, answers, 0.0)
            total += one * math.log(one / other)
    # Rounding can leave a divergence of nothing just below 0.
    return max(0.0, total / float(len(menus) ** judgments) / judgments)


def middle_first(gap: float) -> float:
    """Return the probability that the middle item is the best of three."""
    return mixed([_ITEMS], [((1, 0, 2), 1)], gap)


def won(gap: float) -> float:
    """Return the probability that the first item wins over the middle one."""
    return mixed([_ITEMS[:2]], [((0, 1), 1)], gap)


def alike(gap: float) -> float:
    """Return the probability that one annotator answers a pair of neighbouring items alike, asked twice."""
    menus = [_ITEMS[:2]] * 2
    return mixed(menus, [((0, 1), 1)] * 2, gap) + mixed(menus, [((1, 0), 1)] * 2, gap)


def _answers(form: Form, menu: Menu) -> list[Answer]:
    orders = list(permutations(range(len(menu))))
    if form == "best":
        # The order of what is not told does not matter.
        orders = [order for order in orders if order[1] < order[2]]
    return [(order, 1 if form == "best" else len(menu) - 1) for order in orders]
