"""Annotators as clients and in silos: who trains, who is unseen, what everybody keeps, and people made up."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedalign.data.rankings import Annotator, Ranking, RankingClient, RankingSet, Role
from fedalign.errors import UserError
from fedalign.rng import Streams

Make = Callable[..., Any]
LAYOUTS = ("annotators", "annotator_silos")


def judgments(annotator: str | None, group: str, train: int, test: int, stem: str = "") -> list[Ranking]:
    return [
        Ranking(f"{stem or annotator} {i}", ("a", "b"), (0, 1), "train" if i < train else "test", group, annotator)
        for i in range(train + test)
    ]


@pytest.fixture(scope="module")
def crowd() -> RankingSet:
    """Twelve people, the last three of a rare type; person i has 10 + i training and 4 held-out judgments."""
    people = [judgments(f"p{i:02d}", "all", 10 + i, 4) for i in range(12)]
    return RankingSet(
        [ranking for own in people for ranking in own],
        types={f"p{i:02d}": "most" if i < 9 else "few" for i in range(12)},
        answers={f"p{i:02d}": [(0, 1), (i % 2, 0)] for i in range(12)},
    )


@pytest.fixture(scope="module")
def nobody() -> RankingSet:
    """Ninety training and thirty held-out judgments of two groups; the data do not say who judged."""
    return RankingSet([*judgments(None, "x", 50, 20, "x"), *judgments(None, "y", 40, 10, "y")])


def split(
    make: Make, rankings: RankingSet, seed: int = 0, layout: str = "annotators", **changes: Any
) -> tuple[Sequence[RankingClient], Mapping[str, int]]:
    result: tuple[Sequence[RankingClient], Mapping[str, int]] = make(f"partition/{layout}", **changes).split(
        rankings, Streams(seed)
    )
    return result


def names(clients: Sequence[RankingClient], role: Role) -> list[str]:
    return [client.name for client in clients if client.role is role]


def people(clients: Sequence[RankingClient], role: Role | None = None) -> dict[str, Annotator]:
    return {own.name: own for client in clients if role in (None, client.role) for own in client.annotators}


def test_one_client_an_annotator(make: Make, crowd: RankingSet) -> None:
    clients, dropped = split(make, crowd)
    assert names(clients, Role.TRAIN) == [f"p{i:02d}" for i in range(12)] and dropped == {}
    for i, client in enumerate(clients):
        (own,) = client.annotators
        assert own.name == client.name and own.type == ("most" if i < 9 else "few")
        assert list(own.rankings) == [r for r in crowd.rankings if r.annotator == client.name]
        assert own.answers == ((0, 1), (i % 2, 0))


def test_what_is_not_known_is_empty(make: Make, crowd: RankingSet) -> None:
    clients, _ = split(make, RankingSet(crowd.rankings))
    assert {(own.type, own.answers) for own in people(clients).values()} == {(None, ())}


@given(seed=st.integers(0, 2**32), wanted=st.integers(4, 8), unseen=st.integers(0, 4), silos=st.integers(1, 4))
def test_silos_hold_the_people_who_would_be_clients(
    make: Make, crowd: RankingSet, seed: int, wanted: int, unseen: int, silos: int
) -> None:
    keys: dict[str, Any] = {"unseen": unseen, "max_train": 9, "max_test": 2}
    apart, _ = split(make, crowd, seed, clients=wanted, **keys)
    together, _ = split(make, crowd, seed, "annotator_silos", annotators=wanted, silos=silos, **keys)
    assert len(names(apart, Role.TRAIN)) == wanted and len(names(apart, Role.UNSEEN)) == unseen
    assert names(together, Role.TRAIN) == [f"silo-{i + 1}" for i in range(silos)]
    assert people(together, Role.TRAIN) == people(apart, Role.TRAIN)
    assert [c for c in together if c.role is Role.UNSEEN] == [c for c in apart if c.role is Role.UNSEEN]
    sizes = [len(client.annotators) for client in together if client.role is Role.TRAIN]
    assert sum(sizes) == wanted and max(sizes) - min(sizes) <= 1
    assert len(people(together)) == wanted + unseen


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_order_of_the_file_decides_nobodys_place(make: Make, crowd: RankingSet, layout: str) -> None:
    def shape(rankings: RankingSet) -> list[tuple[str, list[tuple[str, int]]]]:
        clients, _ = split(make, rankings, 1, layout, unseen=3)
        return [(client.name, [(own.name, len(own.rankings)) for own in client.annotators]) for client in clients]

    shuffled = random.Random(0).sample(list(crowd.rankings), len(crowd.rankings))
    assert shape(replace(crowd, rankings=shuffled)) == shape(crowd)


def test_more_clients_leave_the_unseen_and_keep_the_others(make: Make, crowd: RankingSet) -> None:
    few, _ = split(make, crowd, 3, clients=4, unseen=2)
    many, _ = split(make, crowd, 3, clients=8, unseen=2)
    assert names(few, Role.UNSEEN) == names(many, Role.UNSEEN)
    assert set(names(few, Role.TRAIN)) < set(names(many, Role.TRAIN))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_seed_decides_who_is_unseen_and_who_trains(make: Make, crowd: RankingSet, layout: str) -> None:
    wanted = {"annotators": "clients", "annotator_silos": "annotators"}[layout]
    for role, keys in ((Role.UNSEEN, {"unseen": 4}), (Role.TRAIN, {wanted: 5})):
        drawn = [split(make, crowd, seed, layout, **keys)[0] for seed in (0, 0, *range(1, 6))]
        assert drawn[0] == drawn[1] and len({frozenset(people(own, role)) for own in drawn}) > 3


def test_a_seed_decides_who_shares_a_silo(make: Make, crowd: RankingSet) -> None:
    drawn = [split(make, crowd, seed, "annotator_silos")[0] for seed in range(6)]
    assert len({frozenset(own.name for own in clients[0].annotators) for clients in drawn}) > 3


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(("unseen", "most", "few"), [(2, 1, 1), (6, 3, 3), (8, 5, 3)])
def test_the_unseen_are_balanced_over_types_or_groups(
    make: Make, crowd: RankingSet, unseen: int, most: int, few: int, known: bool
) -> None:
    rankings = crowd if known else RankingSet([replace(r, group=crowd.types[str(r.annotator)]) for r in crowd.rankings])
    for seed in range(5):
        clients, _ = split(make, rankings, seed, unseen=unseen)
        assert Counter(crowd.types[name] for name in names(clients, Role.UNSEEN)) == {"most": most, "few": few}


def test_caps_keep_a_random_part_in_order(make: Make, crowd: RankingSet) -> None:
    everything, capped = people(split(make, crowd)[0]), people(split(make, crowd, max_train=9, max_test=2)[0])
    for name, own in capped.items():
        assert Counter(ranking.split for ranking in own.rankings) == {"train": 9, "test": 2}
        places = [everything[name].rankings.index(ranking) for ranking in own.rankings]
        assert places == sorted(places)
    assert any(own.rankings[:9] != everything[name].rankings[:9] for name, own in capped.items())
    alike = RankingSet([r for name in "abcdef" for r in judgments(name, "all", 20, 1)])
    kept = people(split(make, alike, max_train=5)[0])
    assert len({tuple(r.prompt.split()[1] for r in own.rankings) for own in kept.values()}) > 3
    scarce = people(split(make, crowd, max_train=3, max_test=2)[0])
    for name, own in scarce.items():
        assert set(own.rankings) < set(capped[name].rankings)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("changes", [{"min_train": 12}, {"min_train": 1, "min_test": 5}])
def test_small_annotators_are_refused(make: Make, crowd: RankingSet, changes: dict[str, int], layout: str) -> None:
    with pytest.raises(UserError, match="annotator 'p00' has 10 training and 4 held-out judgments, fewer than"):
        split(make, crowd, 0, layout, **changes)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_small_annotators_are_dropped_and_counted(make: Make, crowd: RankingSet, layout: str) -> None:
    clients, dropped = split(make, crowd, 0, layout, min_train=13, small="drop")
    assert sorted(people(clients)) == [f"p{i:02d}" for i in range(3, 12)]
    assert dropped == {"annotator_small": 3}


@pytest.mark.parametrize(
    ("layout", "changes", "message"),
    [
        (
            "annotators",
            {"clients": 13},
            r"12 annotators have enough .*, 13 are needed.*lower partition\.clients",
        ),
        ("annotators", {"clients": 10, "unseen": 3}, "13 are needed"),
        ("annotator_silos", {"annotators": 10, "unseen": 3}, r"13 are needed.*lower partition\.annotators"),
        ("annotators", {"unseen": 12}, "12 annotators have enough judgments, 13 are needed"),
        ("annotators", {"min_train": 100, "small": "drop"}, "0 annotators have enough judgments, 1 are needed"),
        ("annotator_silos", {"silos": 12, "unseen": 1}, r"partition\.silos=12: only 11 annotators train"),
        ("annotators", {"max_train": 1}, r"partition\.max_train=1 is less than partition\.min_train=2"),
        ("annotator_silos", {"max_test": 0}, r"partition\.max_test=0 is less than partition\.min_test=1"),
    ],
)
def test_what_does_not_fit_is_refused(
    make: Make, crowd: RankingSet, layout: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        split(make, crowd, 0, layout, **changes)


def test_nobody_known_needs_people_made_up(make: Make, nobody: RankingSet) -> None:
    with pytest.raises(UserError, match=r"120 of 120 judgments do not say who judged; take partition=annotator_silos"):
        split(make, nobody)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_or_nobody_is_known(make: Make, crowd: RankingSet, nobody: RankingSet, layout: str) -> None:
    some = RankingSet([*crowd.rankings, nobody.rankings[0]])
    with pytest.raises(UserError, match=r"1 of .* do not say who judged; give every judgment an annotator, or none"):
        split(make, some, 0, layout)


def test_made_up_people_share_the_judgments_of_a_group(make: Make, nobody: RankingSet) -> None:
    clients, dropped = split(make, nobody, 0, "annotator_silos", judgments_per_person=15, silos=2, unseen=1)
    made = people(clients)
    # 50 training judgments make three people of 15 and more, 40 make two.
    assert sorted(made) == [f"person-{i:05d}" for i in range(1, 6)] and dropped == {}
    dealt = [ranking for own in made.values() for ranking in own.rankings]
    assert Counter(dealt) == Counter(nobody.rankings)
    sizes = {name: Counter((r.group, r.split) for r in own.rankings) for name, own in made.items()}
    assert sorted(count["x", "train"] for count in sizes.values()) == [0, 0, 16, 17, 17]
    assert sorted(count["x", "test"] for count in sizes.values()) == [0, 0, 6, 7, 7]
    assert sorted(count["y", "train"] for count in sizes.values()) == [0, 0, 0, 20, 20]
    assert {own.type for own in made.values()} == {None}
    other, _ = split(make, nobody, 1, "annotator_silos", judgments_per_person=15, silos=2, unseen=1)
    hands, others = ({frozenset(own.rankings) for own in found.values()} for found in (made, people(other)))
    assert set(people(other)) == set(made) and hands.isdisjoint(others)


def test_a_group_with_few_judgments_is_one_person(make: Make, nobody: RankingSet) -> None:
    clients, _ = split(make, nobody, 0, "annotator_silos", judgments_per_person=1000, silos=1)
    assert [len(own.rankings) for own in clients[0].annotators] == [70, 50]


def test_no_two_clients_share_a_name(make: Make) -> None:
    rankings = RankingSet([r for name in ("silo-1", "x") for r in judgments(name, "all", 9, 1)])
    for seed in range(20):
        try:
            clients, _ = split(make, rankings, seed, "annotator_silos", silos=1, unseen=1)
        except UserError as error:
            assert "2 clients are called 'silo-1'; rename that annotator" in str(error)
            return
        assert names(clients, Role.UNSEEN) == ["x"]
    pytest.fail("no seed leaves the annotator unseen")
