"""What the drawn worlds of rankings share: how people are dealt to types, and the set that a world delivers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from fedalign.data.ranking_forms import MOST_ORDERS, Tiers, agreeing_orders, says_something
from fedalign.data.rankings import Menu, Ranking, RankingSet


def dealt(shares: Sequence[float], people: int) -> list[int]:
    """Return each person's type, so that any number of the first ones has the types' shares, up to rounding.

    Always the type that is furthest behind its share.

    Parameters
    ----------
    shares : sequence of float, length K
        Positive, relative to their sum.
    people : int

    Returns
    -------
    list of int, length ``people``
        In 0, ..., K - 1; the same for the first people however many follow.
    """
    wanted = np.asarray(shares, dtype=np.float64) / sum(shares)
    counts = np.zeros(len(wanted))
    types = []
    for person in range(people):
        # Rounded, so that types that are level are dealt in their order.
        k = int(np.argmax(np.round(wanted * (person + 1) - counts, 9)))
        counts[k] += 1
        types.append(k)
    return types


def person(number: int) -> str:
    """Return an annotator's name; numbers are from 0 and names from ``annotator-001``."""
    return f"annotator-{number + 1:03d}"


def world_set(
    judged: Sequence[Ranking],
    types: Mapping[str, str],
    probe: Sequence[Menu],
    answers: Mapping[str, Sequence[Tiers]],
) -> RankingSet:
    """Return a world's set, without judgments in which all responses tie (``all_tied``) or too many do (``ties_many``).

    Parameters
    ----------
    judged : sequence of Ranking
        Also such with one tier.
    types : mapping from annotator to type
    probe : sequence of Menu
    answers : mapping from annotator to tiers of each menu of the probe
    """
    told = [ranking for ranking in judged if says_something(ranking.tiers)]
    rankings = [ranking for ranking in told if agreeing_orders(ranking.tiers) <= MOST_ORDERS]
    dropped = Counter(all_tied=len(judged) - len(told), ties_many=len(told) - len(rankings))
    return RankingSet(rankings, dict(+dropped), types, probe, answers)
