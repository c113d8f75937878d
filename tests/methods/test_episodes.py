"""Episodes: the sizes that were asked for, no judgment both shown and to be predicted, and fair shares of a silo."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedalign.errors import UserError
from fedalign.methods.episodes import EpisodePlan

from .judgments import random_person

SIZE = st.integers(1, 6)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(
    counts=st.lists(st.integers(2, 9), min_size=1, max_size=5),
    episodes=st.integers(1, 7),
    low=SIZE,
    extra=st.integers(0, 4),
    targets=SIZE,
    seed=st.integers(0, 999),
)
def test_context_and_target_never_share_a_judgment(
    counts: list[int], episodes: int, low: int, extra: int, targets: int, seed: int
) -> None:
    people = [random_person(f"p{place}", count + 2, place, test=2) for place, count in enumerate(counts)]
    picks = list(EpisodePlan(episodes, low, low + extra, targets).picks(people, generator(seed)))
    assert sum(len(pick.index) for pick in picks) == episodes
    assert len({(pick.context, pick.index.shape[1]) for pick in picks}) == 1
    fewest = min(len(pick.judgments.train) for pick in picks)
    context = picks[0].context
    assert min(low, fewest - 1) <= context <= min(low + extra, fewest - 1)
    assert picks[0].index.shape[1] - context == min(targets, fewest - context) >= 1
    for pick in picks:
        for row in pick.index.tolist():
            assert not set(row[:context]) & set(row[context:])
            assert len(set(row)) == len(row)
            assert set(row) <= set(pick.judgments.train.tolist())


def test_a_drawn_step_holds_what_its_picks_say() -> None:
    people = [random_person("ann", 8, 0), random_person("ben", 7, 1), random_person("cid", 9, 2)]
    plan = EpisodePlan(5, 2, 3, 2)
    picks = {pick.judgments.person: pick for pick in plan.picks(people, generator())}
    drawn = plan.draw(people, generator())
    assert {person: rows.stop - rows.start for person, rows in drawn.rows.items()} == {"ann": 2, "ben": 2, "cid": 1}
    assert [rows.start for rows in drawn.rows.values()] == [0, 2, 4]
    assert drawn.context.first.shape[:2] == drawn.context.preferred.shape == (5, picks["ann"].context)
    assert drawn.target.first.shape[:2] == drawn.target.preferred.shape == (5, 2)
    # Every drawn vector is a response of the person whose row it is in.
    for person in people:
        own = {tuple(vector.tolist()) for vector in person.features.reshape(-1, person.features.shape[-1])}
        for batch in (drawn.context, drawn.target):
            rows = torch.cat([batch.first, batch.second], 1)[drawn.rows[person.person]]
            assert {tuple(vector.tolist()) for vector in rows.reshape(-1, rows.shape[-1])} <= own


def test_every_context_size_comes_up_equally_often() -> None:
    plan, draws = EpisodePlan(1, 2, 4, 1), generator()
    person = [random_person("ann", 9, 0)]
    sizes = Counter(next(iter(plan.picks(person, draws))).context for _ in range(1200))
    assert set(sizes) == {2, 3, 4}
    assert all(abs(count - 400) < 5 * (1200 * 2 / 9) ** 0.5 for count in sizes.values())


def test_a_large_silo_is_sampled_and_everybody_has_the_same_chance() -> None:
    people = [random_person(f"p{place}", 4, place) for place in range(6)]
    plan, draws = EpisodePlan(2, 1, 2, 1), generator()
    seen: Counter[str] = Counter()
    for _ in range(600):
        picked = [pick.judgments.person for pick in plan.picks(people, draws)]
        assert len(set(picked)) == 2
        seen.update(picked)
    assert all(abs(count - 200) < 5 * (600 * 2 / 9) ** 0.5 for count in seen.values())


def test_the_least_judgments_of_the_people_drawn_bound_everybody() -> None:
    people = [random_person("ann", 30, 0), random_person("ben", 3, 1)]
    picks = list(EpisodePlan(2, 5, 9, 9).picks(people, generator()))
    assert {(pick.context, pick.index.shape[1]) for pick in picks} == {(2, 3)}


def test_contexts_of_a_person_are_of_the_largest_size() -> None:
    plan = EpisodePlan(3, 2, 5, 4)
    assert plan.contexts(random_person("ann", 9, 0), 6, generator()).preferred.shape == (6, 5)
    assert plan.contexts(random_person("ben", 3, 0), 6, generator()).preferred.shape == (6, 3)
    person = random_person("cid", 9, 1, test=5)
    own = {tuple(vector.tolist()) for vector in person.features[person.train].reshape(-1, 4)}
    shown = plan.contexts(person, 50, generator()).first.reshape(-1, 4)
    assert {tuple(vector.tolist()) for vector in shown} == own


def test_bounds_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(UserError, match=r"max_context=2 is below method\.episodes\.min_context=3"):
        EpisodePlan(1, 3, 2, 1)
