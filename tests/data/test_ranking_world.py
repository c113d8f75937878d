"""People dealt to types in every prefix, and sets from which judgments without information are gone."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedalign.data.ranking_world import dealt, person, world_set
from fedalign.data.rankings import Ranking


@given(st.lists(st.floats(0.05, 1.0), min_size=1, max_size=4), st.integers(0, 60))
def test_any_prefix_has_the_shares(shares: list[float], people: int) -> None:
    types = dealt(shares, people)
    assert len(types) == people and types == dealt(shares, people + 5)[:people]
    wanted = np.array(shares) / sum(shares)
    counts = np.bincount(types, minlength=len(shares)) if types else np.zeros(len(shares))
    assert np.all(np.abs(counts - wanted * people) < len(shares))


def test_equal_shares_are_dealt_in_turn() -> None:
    assert dealt([1.0, 1.0, 1.0], 7) == [0, 1, 2, 0, 1, 2, 0]
    assert dealt([3.0, 1.0], 4).count(1) == 1


def test_a_set_counts_what_says_nothing() -> None:
    told, tied = (Ranking("p", ("a", "b"), tiers, "train", "g", person(0)) for tiers in ((1, 0), (0, 0)))
    found = world_set([told, tied], {person(0): "g"}, [], {})
    assert list(found.rankings) == [told] and found.dropped == {"all_tied": 1} and found.types == {"annotator-001": "g"}
    assert world_set([told], {}, [], {}).dropped == {}


def test_a_set_counts_what_agrees_with_too_many_orders() -> None:
    few, many = (
        Ranking("p", tuple("abcdefghi"), tiers, "train", "g", person(0))
        for tiers in ((0,) * 7 + (1, 1), (0,) * 8 + (1,))
    )
    found = world_set([few, many], {}, [], {})
    assert list(found.rankings) == [few] and found.dropped == {"ties_many": 1}
