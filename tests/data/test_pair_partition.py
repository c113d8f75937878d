"""Partitions by annotator: who trains, who stays unseen, who is too small, and what everybody keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedalign.data.pairs import Pair, PairClient, PairSet, Role
from fedalign.errors import UserError
from fedalign.rng import Streams

Make = Callable[..., Any]


def judgments(annotator: str, group: str, train: int, test: int) -> list[Pair]:
    return [
        Pair(f"{annotator} {i}", "a", "b", "train" if i < train else "test", group, annotator)
        for i in range(train + test)
    ]


@pytest.fixture(scope="module")
def crowd() -> PairSet:
    """Twelve people, the last three in a minority; person i has 10 + i training and 4 held-out judgments."""
    people = [judgments(f"p{i:02d}", "most" if i < 9 else "few", 10 + i, 4) for i in range(12)]
    return PairSet([pair for own in people for pair in own])


def split(make: Make, pairs: PairSet, seed: int = 0, **changes: Any) -> tuple[Sequence[PairClient], Mapping[str, int]]:
    result: tuple[Sequence[PairClient], Mapping[str, int]] = make("partition/by_annotator", **changes).split(
        pairs, Streams(seed)
    )
    return result


def names(clients: Sequence[PairClient], role: Role) -> list[str]:
    return [client.name for client in clients if client.role is role]


def held(clients: Sequence[PairClient], split: str) -> dict[str, list[Pair]]:
    return {p.name: [j for j in p.pairs if j.split == split] for client in clients for p in client.people}


def test_one_client_an_annotator(make: Make, crowd: PairSet) -> None:
    clients, dropped = split(make, crowd)
    assert names(clients, Role.TRAIN) == [f"p{i:02d}" for i in range(12)] and dropped == {}
    assert [pair for client in clients for person in client.people for pair in person.pairs] == crowd.pairs
    for client in clients:
        (person,) = client.people
        assert person.name == client.name and {pair.annotator for pair in person.pairs} == {client.name}
        assert {person.group} == {pair.group for pair in person.pairs}


def test_a_persons_group_is_that_of_most_training_judgments(make: Make) -> None:
    pairs = [*judgments("ann", "x", 3, 9), *judgments("ann", "y", 4, 0)]
    clients, _ = split(make, PairSet(pairs), min_train=1)
    assert clients[0].people[0].group == "y"


@given(seed=st.integers(0, 2**32), clients=st.integers(1, 8), unseen=st.integers(0, 4), pooled=st.booleans())
def test_people_are_chosen_once_and_keep_their_own(
    make: Make, crowd: PairSet, seed: int, clients: int, unseen: int, pooled: bool
) -> None:
    chosen, dropped = split(make, crowd, seed, clients=clients, unseen=unseen, pooled=pooled)
    assert dropped == {}
    assert [client.role for client in chosen] == [Role.TRAIN] * (1 if pooled else clients) + [Role.UNSEEN] * unseen
    people = [person for client in chosen for person in client.people]
    assert len({person.name for person in people}) == len(people) == clients + unseen
    for person in people:
        assert list(person.pairs) == [pair for pair in crowd.pairs if pair.annotator == person.name]


def test_pooling_changes_nothing_but_the_clients(make: Make, crowd: PairSet) -> None:
    keys: dict[str, Any] = {"clients": 7, "unseen": 3, "max_train": 9, "max_test": 2}
    apart, _ = split(make, crowd, 5, **keys)
    pooled, _ = split(make, crowd, 5, pooled=True, **keys)
    assert names(pooled, Role.TRAIN) == ["pooled"] and names(pooled, Role.UNSEEN) == names(apart, Role.UNSEEN)
    assert [p for client in pooled for p in client.people] == [p for client in apart for p in client.people]


def test_more_clients_leave_the_unseen_and_keep_the_others(make: Make, crowd: PairSet) -> None:
    few, _ = split(make, crowd, 3, clients=4, unseen=2)
    many, _ = split(make, crowd, 3, clients=8, unseen=2)
    assert names(few, Role.UNSEEN) == names(many, Role.UNSEEN)
    assert set(names(few, Role.TRAIN)) < set(names(many, Role.TRAIN))
    assert names(many, Role.TRAIN) == sorted(names(many, Role.TRAIN))


def test_a_seed_decides_who(make: Make, crowd: PairSet) -> None:
    for role, keys in ((Role.TRAIN, {"clients": 5}), (Role.UNSEEN, {"unseen": 4})):
        drawn = [names(split(make, crowd, seed, **keys)[0], role) for seed in (0, 0, *range(1, 6))]
        assert drawn[0] == drawn[1] and len({tuple(own) for own in drawn}) > 3


@pytest.mark.parametrize(("unseen", "most", "few"), [(2, 1, 1), (6, 3, 3), (8, 5, 3)])
def test_the_unseen_are_balanced_as_far_as_possible(
    make: Make, crowd: PairSet, unseen: int, most: int, few: int
) -> None:
    for seed in range(5):
        clients, _ = split(make, crowd, seed, unseen=unseen)
        groups = Counter(client.people[0].group for client in clients if client.role is Role.UNSEEN)
        assert groups == {"most": most, "few": few}


def test_caps_keep_a_random_part(make: Make, crowd: PairSet) -> None:
    everything = held(split(make, crowd)[0], "train")
    train = held(split(make, crowd, 0, max_train=9, max_test=2)[0], "train")
    test = held(split(make, crowd, 0, max_train=9, max_test=2)[0], "test")
    for name, own in train.items():
        assert len(own) == 9 and len(test[name]) == 2
        positions = [everything[name].index(pair) for pair in own]
        assert positions == sorted(positions)
    assert any(own != everything[name][:9] for name, own in train.items())
    assert train != held(split(make, crowd, 1, max_train=9)[0], "train")
    # Scarcity in training changes nothing that is measured, and a smaller cap keeps a part of a larger one.
    assert test == held(split(make, crowd, 0, max_test=2)[0], "test")
    larger = held(split(make, crowd, 0, max_train=10)[0], "train")
    assert all(set(own) <= set(larger[name]) for name, own in train.items())


@pytest.mark.parametrize("changes", [{"min_train": 12}, {"min_train": 1, "min_test": 5}])
def test_small_annotators_are_refused(make: Make, crowd: PairSet, changes: dict[str, int]) -> None:
    with pytest.raises(UserError, match="annotator 'p00' has 10 training and 4 held-out judgments, fewer than"):
        split(make, crowd, **changes)


def test_small_annotators_are_dropped_and_counted(make: Make, crowd: PairSet) -> None:
    clients, dropped = split(make, crowd, min_train=13, small="drop")
    assert names(clients, Role.TRAIN) == [f"p{i:02d}" for i in range(3, 12)]
    assert dropped == {"annotator_small": 3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clients": 13}, "12 annotators have enough judgments, 13 are needed"),
        ({"clients": 10, "unseen": 3}, "12 annotators have enough judgments, 13 are needed"),
        ({"unseen": 12}, "12 annotators have enough judgments, 13 are needed"),
        ({"min_train": 100, "small": "drop"}, "0 annotators have enough judgments, 1 are needed"),
        ({"max_train": 8}, "partition.max_train=8 is less than partition.min_train=9"),
        ({"max_test": 0}, "partition.max_test=0 is less than partition.min_test=1"),
    ],
)
def test_what_does_not_fit_is_refused(make: Make, crowd: PairSet, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        split(make, crowd, **changes)


def test_annotators_must_be_known(make: Make, crowd: PairSet) -> None:
    with pytest.raises(UserError, match="the data do not say who judged"):
        split(make, PairSet([*crowd.pairs, Pair("p", "a", "b", "train", "most")]))


def test_no_two_clients_share_a_name(make: Make) -> None:
    pairs = PairSet([pair for name in ("pooled", "x") for pair in judgments(name, "all", 9, 1)])
    for seed in range(10):
        if names(split(make, pairs, seed, unseen=1)[0], Role.UNSEEN) == ["pooled"]:
            with pytest.raises(UserError, match="2 clients are called 'pooled'"):
                split(make, pairs, seed, unseen=1, pooled=True)
            return
    pytest.fail("no seed leaves the annotator unseen")
