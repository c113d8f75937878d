"""Partitions by category: every judgment dealt at most once, shares as asked for, clients of equal size."""

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
Clients = Sequence[PairClient]

FREE: dict[str, Any] = {"min_train": 1, "min_test": 0}


def pool(**sizes: tuple[int, int]) -> PairSet:
    """Return judgments by category: so many for training and so many held out."""
    return PairSet(
        [
            Pair(f"{group} {i}", "a", "b", "train" if i < train else "test", group)
            for group, (train, test) in sizes.items()
            for i in range(train + test)
        ]
    )


PAIRS = pool(help=(600, 200), harm=(600, 200), wit=(600, 200))


def deal(make: Make, name: str, pairs: PairSet, seed: int = 0, **changes: Any) -> tuple[Clients, Mapping[str, int]]:
    result: tuple[Clients, Mapping[str, int]] = make(f"partition/{name}", **changes).split(pairs, Streams(seed))
    return result


def mix(client: PairClient, split: str) -> Counter[str]:
    (person,) = client.people
    return Counter(pair.group for pair in person.pairs if pair.split == split)


@pytest.mark.parametrize("clients", [10, 50, 100])
@pytest.mark.parametrize(("name", "own"), [("strict", 1.0), ("ratio_90_10", 0.9), ("ratio_70_30", 0.7)])
def test_shares_are_as_asked_for(make: Make, name: str, own: float, clients: int) -> None:
    pairs = pool(help=(2000, 400), harm=(2000, 400))
    dealt, dropped = deal(make, name, pairs, clients=clients, min_train=1)
    assert [client.name for client in dealt] == [f"client-{i + 1:03d}" for i in range(clients)]
    assert [client.people[0].group for client in dealt] == ["help", "harm"] * (clients // 2)
    for client in dealt:
        for split, total in (("train", 4000), ("test", 800)):
            sizes, group = mix(client, split), client.people[0].group
            assert abs(sum(sizes.values()) - total // clients) <= 1
            assert abs(sizes[group] - own * sum(sizes.values())) <= 0.5
    assert dropped.get("judgment_left_over", 0) <= 2 * clients


@given(
    seed=st.integers(0, 2**32),
    sizes=st.lists(st.tuples(st.integers(8, 60), st.integers(0, 30)), min_size=2, max_size=4),
    clients=st.integers(1, 6),
    unseen=st.integers(0, 2),
    share=st.floats(0.5, 1.0),
    mixed=st.booleans(),
    max_train=st.one_of(st.none(), st.integers(1, 10)),
)
def test_every_judgment_is_dealt_once_or_left_over(
    make: Make,
    seed: int,
    sizes: list[tuple[int, int]],
    clients: int,
    unseen: int,
    share: float,
    mixed: bool,
    max_train: int | None,
) -> None:
    pairs = pool(**{f"c{i}": size for i, size in enumerate(sizes)})
    keys = {**FREE, "clients": clients, "unseen": unseen, "share": share, "mixed": mixed, "max_train": max_train}
    dealt, dropped = deal(make, "strict", pairs, seed, **keys)
    assert [client.role for client in dealt] == [Role.TRAIN] * clients + [Role.UNSEEN] * unseen
    held = Counter(pair for client in dealt for person in client.people for pair in person.pairs)
    assert set(held) <= set(pairs.pairs) and max(held.values()) == 1
    assert len(pairs.pairs) - len(held) == dropped.get("judgment_left_over", 0)
    for split in ("train", "test"):
        assert len({sum(mix(client, split).values()) for client in dealt}) == 1
    if max_train is not None:
        assert sum(mix(dealt[0], "train").values()) <= max_train


def test_the_scarcest_category_decides_and_no_client_could_have_more(make: Make) -> None:
    dealt, dropped = deal(make, "strict", pool(help=(100, 20), harm=(31, 20)), clients=4, **FREE)
    assert [sum(mix(client, "train").values()) for client in dealt] == [15] * 4
    assert dropped == {"judgment_left_over": 100 + 31 - 60}


def test_the_rest_is_spread_over_the_other_categories(make: Make) -> None:
    dealt, _ = deal(make, "ratio_70_30", PAIRS, clients=6, max_train=20)
    for client in dealt:
        assert sorted(mix(client, "train").values()) == [3, 3, 14]
    # One left-over judgment goes to one category or the other, in equal parts over the clients.
    dealt, _ = deal(make, "ratio_70_30", PAIRS, clients=12, max_train=10, share=0.9)
    others = [next(g for g in mix(c, "train") if g != c.people[0].group) for c in dealt]
    assert Counter(others) == {"help": 4, "harm": 4, "wit": 4}


def test_mixed_clients_hold_a_random_part_of_all(make: Make) -> None:
    dealt, dropped = deal(make, "mixed", PAIRS, clients=10)
    assert dropped == {}
    assert {client.people[0].group for client in dealt} == {"mixed"}
    for client in dealt:
        sizes = mix(client, "train")
        assert sum(sizes.values()) == 180 and all(35 <= sizes[group] <= 85 for group in ("help", "harm", "wit"))
    assert len({mix(client, "train")["help"] for client in dealt}) > 1


def test_categories_are_chosen(make: Make) -> None:
    dealt, dropped = deal(make, "strict", PAIRS, clients=4, categories=["wit", "help"])
    assert [client.people[0].group for client in dealt] == ["wit", "help", "wit", "help"]
    assert dropped == {}
    mixed, _ = deal(make, "mixed", PAIRS, clients=4, categories=["wit"])
    assert all(set(mix(client, "train")) == {"wit"} for client in mixed)


def test_unseen_clients_are_balanced_too(make: Make) -> None:
    dealt, _ = deal(make, "strict", PAIRS, clients=5, unseen=3)
    assert [client.people[0].group for client in dealt] == [
        "help",
        "harm",
        "wit",
        "help",
        "harm",
        "help",
        "harm",
        "wit",
    ]
    assert [client.name for client in dealt if client.role is Role.UNSEEN] == ["client-006", "client-007", "client-008"]


def test_pooling_changes_nothing_but_the_clients(make: Make) -> None:
    keys: dict[str, Any] = {"clients": 8, "unseen": 2, "max_train": 11, "max_test": 3}
    apart, _ = deal(make, "ratio_70_30", PAIRS, 4, **keys)
    pooled, _ = deal(make, "ratio_70_30", PAIRS, 4, pooled=True, **keys)
    assert [(client.name, client.role) for client in pooled] == [
        ("pooled", Role.TRAIN),
        ("client-009", Role.UNSEEN),
        ("client-010", Role.UNSEEN),
    ]
    assert [p for client in pooled for p in client.people] == [p for client in apart for p in client.people]


def test_a_cap_on_training_changes_nothing_that_is_measured(make: Make) -> None:
    def held_out(**changes: Any) -> list[list[Pair]]:
        dealt, _ = deal(make, "ratio_90_10", PAIRS, clients=6, **changes)
        return [[pair for pair in client.people[0].pairs if pair.split == "test"] for client in dealt]

    assert held_out(max_train=9) == held_out()


def test_a_seed_decides_the_deal(make: Make) -> None:
    first, again, other = (deal(make, "strict", PAIRS, seed, clients=6)[0] for seed in (1, 1, 2))
    assert first == again != other


def test_too_few_judgments_are_refused_with_the_number_that_works(make: Make) -> None:
    with pytest.raises(
        UserError, match=r"clients=100: each client would get 16 training.*set partition\.clients=60 or"
    ) as e:
        deal(make, "strict", pool(help=(800, 200), harm=(800, 200)), clients=100, min_train=26)
    assert "\n" not in str(e.value)
    dealt, dropped = deal(make, "strict", pool(help=(800, 200), harm=(800, 200)), clients=60, min_train=26)
    assert min(sum(mix(client, "train").values()) for client in dealt) >= 26
    dealt, dropped = deal(
        make, "strict", pool(help=(800, 200), harm=(800, 200)), clients=100, min_train=26, small="drop", unseen=4
    )
    assert len([client for client in dealt if client.role is Role.UNSEEN]) == 4
    training = [client for client in dealt if client.role is Role.TRAIN]
    assert dropped["client_small"] == 100 - len(training)
    assert all(sum(mix(client, "train").values()) >= 26 for client in dealt)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"categories": ["hepl"]}, "no category 'hepl' in the data; did you mean 'help'"),
        ({"categories": ["help", "help"]}, "'help' is listed 2 times"),
        ({"categories": ["help"], "share": 0.9}, "'help' is the only category; set partition.share=1.0"),
        ({"min_train": 10_000, "small": "drop"}, "lower those and partition.unseen"),
        ({"share": 0.4}, "partition.share=0.4"),
        ({"categories": []}, "partition.categories="),
        ({"max_train": 2}, "partition.max_train=2 is less than partition.min_train=9"),
    ],
)
def test_what_does_not_fit_is_refused(make: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        deal(make, "strict", PAIRS, **{"clients": 4, **changes})
