"""Users' texts on clients: stages share no user, every record is used or counted, test texts are apart."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedalign.data.corpus import Corpus, CorpusShard, Example
from fedalign.data.corpus_partition import Silos, StagedPartition, Users
from fedalign.data.corpus_stages import Imitate, Shares
from fedalign.data.federated import Role
from fedalign.errors import UserError
from fedalign.rng import Streams

Make = Callable[..., Any]

THREE = {"sft": 0.4, "reward": 0.3, "rl": 0.3}


def corpus(users: int = 12, each: int = 2, test: int = 5) -> Corpus:
    """Every user has as many demonstrations as comparisons."""
    train = [
        Example(f"u{i:02d}", "all", f"{i} {j}", " So.", " No." if compared else None, "train")
        for i in range(users)
        for j in range(each)
        for compared in (False, True)
    ]
    return Corpus([*train, *(Example("t", "all", f"test {i}", " So.", None, "test") for i in range(test))])


def lay_out(partition: StagedPartition, data: Corpus, seed: int = 0) -> tuple[list[CorpusShard], dict[str, int]]:
    shards, dropped = partition.split(data, Streams(seed))
    return list(shards), dict(dropped)


def users_by_stage(shards: list[CorpusShard]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for shard in shards:
        for stage, examples in shard.stages.items():
            found.setdefault(stage, set()).update(example.user for example in examples)
    return found


def test_one_client_a_user(make: Make) -> None:
    shards, dropped = lay_out(make("partition/users", shares=THREE), corpus())
    assert [shard.client for shard in shards] == [*(f"u{i:02d}" for i in range(12)), "test-1"]
    assert [shard.role for shard in shards] == [*[Role.TRAIN] * 12, Role.UNSEEN]
    for shard in shards[:-1]:
        ((stage, examples),) = shard.stages.items()
        assert {example.user for example in examples} == {shard.client} and not shard.test
        assert len(examples) == (4 if stage == "rl" else 2)
        assert stage == "rl" or all((example.rejected is not None) == (stage == "reward") for example in examples)
    found = Counter(stage for shard in shards for stage in shard.stages)
    assert set(found) == set(THREE) and sum(found.values()) == 12
    # Imitation leaves a user's two comparisons, the reward model its two demonstrations.
    assert dropped == {"example_unused": 2 * (found["sft"] + found["reward"])}


def test_without_disjoint_stages_a_user_serves_all(make: Make) -> None:
    shards, dropped = lay_out(make("partition/users", shares=THREE, disjoint=False), corpus())
    for shard in shards[:-1]:
        assert {stage: len(examples) for stage, examples in shard.stages.items()} == {"sft": 2, "reward": 2, "rl": 4}
    assert dropped == {}


@pytest.mark.parametrize("seed", range(3))
def test_silos_are_about_even_and_so_are_the_users_of_each_stage(make: Make, seed: int) -> None:
    n = 600
    shards, _ = lay_out(make("partition/silos", shares=THREE, clients=3), corpus(users=n, each=1), seed)
    silos = shards[:-1]
    assert [shard.client for shard in silos] == ["silo-1", "silo-2", "silo-3"]
    for stage, share in THREE.items():
        # Within four standard deviations of a binomial: the two coins of a user are independent.
        p = share / 3
        counts = [len(users_by_stage([silo])[stage]) for silo in silos]
        assert all(abs(count - n * p) <= 4 * math.sqrt(n * p * (1 - p)) for count in counts)
    assert sum(len(set().union(*users_by_stage([silo]).values())) for silo in silos) == n


def test_who_serves_which_stage_does_not_depend_on_the_partition(make: Make) -> None:
    data = corpus(users=30)
    in_silos, alone = (lay_out(make(f"partition/{name}", shares=THREE), data)[0] for name in ("silos", "users"))
    assert users_by_stage(in_silos) == users_by_stage(alone)


def test_test_examples_are_dealt_to_unseen_clients(make: Make) -> None:
    partition = make("partition/users", unseen=2)
    shards, dropped = lay_out(partition, corpus(test=5))
    unseen = shards[-2:]
    assert [(shard.client, shard.role, dict(shard.stages)) for shard in unseen] == [
        ("test-1", Role.UNSEEN, {}),
        ("test-2", Role.UNSEEN, {}),
    ]
    assert [len(shard.test) for shard in unseen] == [3, 2]
    assert len({example.prompt for shard in unseen for example in shard.test}) == 5
    capped, dropped = lay_out(make("partition/users", unseen=2, test_per_client=1), corpus(test=5))
    assert [len(shard.test) for shard in capped[-2:]] == [1, 1] and dropped["test_left_over"] == 3
    assert lay_out(make("partition/users", unseen=0), corpus(test=5))[1]["test_left_over"] == 5


def test_what_does_not_fit_is_refused(make: Make) -> None:
    with pytest.raises(UserError, match=r"partition\.unseen=9: the data hold 5 test examples.*partition\.unseen=5 or"):
        lay_out(make("partition/users", unseen=9), corpus())
    with pytest.raises(UserError, match=r"partition\.clients=13: nobody of 12 users came to silo-\d+; lower it"):
        lay_out(make("partition/silos", clients=13), corpus())
    with pytest.raises(UserError, match=r"partition\.shares\.\w+=0\.5: none of 1 users came to serve it"):
        lay_out(make("partition/users", shares={"sft": 0.5, "reward": 0.5, "rl": 0.0}), corpus(users=1))
    named = Corpus(
        [Example("test-1", "all", f"{i}", " So.", None, "train") for i in range(3)] + list(corpus().examples)
    )
    with pytest.raises(UserError, match="2 clients are called 'test-1'; rename that user"):
        lay_out(make("partition/users"), named)
    with pytest.raises(UserError, match=r"partition\.shares.*they sum to 1\.5"):
        make("partition/users", shares={"sft": 0.5, "reward": 0.5, "rl": 0.5})
    with pytest.raises(UserError, match=r"unknown key partition\.shares\.rward; did you mean 'reward'"):
        make("partition/users", shares={"sft": 0.5, "rward": 0.0, "rl": 0.5})


def test_disjoint_is_said_by_the_partition(make: Make) -> None:
    assert make("partition/users").disjoint is True
    assert make("partition/silos", disjoint=False).disjoint is False
    with pytest.raises(UserError, match=r"partition\.disjoint='yes'"):
        make("partition/silos", disjoint="yes")


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Corpus, StagedPartition]:
    names = st.sampled_from([f"u{i}" for i in range(8)])
    records = draw(st.lists(st.tuples(names, st.booleans(), st.booleans()), min_size=1, max_size=40))
    examples = [
        Example(user, "all", str(i), " So.", " No." if compared else None, "test" if test else "train")
        for i, (user, compared, test) in enumerate(records)
    ]
    weights = draw(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)).filter(any))
    shares = Shares(*(weight / sum(weights) for weight in weights))
    imitate: Imitate = draw(st.sampled_from(("demonstrations", "preferred")))
    settings = (shares, draw(st.booleans()), imitate, draw(st.integers(0, 2)), draw(st.none() | st.integers(1, 3)))
    silos = draw(st.none() | st.integers(1, 3))
    return Corpus(examples), Users(*settings) if silos is None else Silos(*settings, silos)


@settings(max_examples=200)  # half of the worlds are refused
@given(worlds(), st.integers(0, 3))
def test_the_laws_of_every_layout(world: tuple[Corpus, StagedPartition], seed: int) -> None:
    data, partition = world
    try:
        shards, dropped = lay_out(partition, data, seed)
    except UserError as error:
        assert "\n" not in str(error) and "partition" in str(error)
        return
    served = users_by_stage(shards)
    assert set(served) == set(partition.shares.served)
    if partition.disjoint:
        assert sum(map(len, served.values())) == len(set().union(*served.values()))
    # A user is on one client.
    homes = [(shard.client, user) for shard in shards for user in set().union(*users_by_stage([shard]).values())]
    assert len({user for _, user in homes}) == len(set(homes))
    # Nothing is lost or doubled: what a stage reads it reads once, and what nobody reads is counted.
    for stage in served:
        read = [example.prompt for shard in shards for example in shard.stages.get(stage, ())]
        assert len(read) == len(set(read))
    used = {example for shard in shards for examples in shard.stages.values() for example in examples}
    tested = [example for shard in shards for example in shard.test]
    assert {example.split for example in used} == {"train"} and {example.split for example in tested} <= {"test"}
    assert len(used) + dropped.get("example_unused", 0) == sum(e.split == "train" for e in data.examples)
    assert len(set(tested)) == len(tested)
    assert len(tested) + dropped.get("test_left_over", 0) == sum(e.split == "test" for e in data.examples)
    # Clients that train have something to train on, and the seed alone decides.
    assert all(any(shard.stages.values()) == (shard.role is Role.TRAIN) for shard in shards)
    assert lay_out(partition, data, seed) == (shards, dropped)


def without(data: Corpus, gone: str) -> Corpus:
    return Corpus([one for one in data.examples if one.user != gone or one.split == "test"])


def of_others(shards: list[CorpusShard], gone: str) -> dict[tuple[str, str], tuple[Example, ...]]:
    """Return what each client has for each stage, but for one user's."""
    found = {
        (shard.client, stage): tuple(one for one in examples if one.user != gone)
        for shard in shards
        for stage, examples in shard.stages.items()
    }
    return {place: examples for place, examples in found.items() if examples}


def both_laid_out(
    partition: StagedPartition, first: Corpus, second: Corpus, seed: int
) -> tuple[list[CorpusShard], list[CorpusShard]] | None:
    """Return the layouts of two corpora; None where a stage or a silo of one has nobody."""
    try:
        return lay_out(partition, first, seed)[0], lay_out(partition, second, seed)[0]
    except UserError:
        return None


@settings(max_examples=200)  # more than half of the worlds are refused
@given(worlds(), st.integers(0, 3), st.data())
def test_nobody_else_is_moved_by_a_user_who_leaves(
    world: tuple[Corpus, StagedPartition], seed: int, data: st.DataObject
) -> None:
    whole, partition = world
    gone = data.draw(st.sampled_from(sorted({one.user for one in whole.examples})))
    found = both_laid_out(partition, whole, without(whole, gone), seed)
    if found is not None:
        before, after = found
        assert of_others(before, gone) == of_others(after, gone)
        assert [shard.test for shard in before if shard.test] == [shard.test for shard in after if shard.test]


def readings(shards: list[CorpusShard]) -> Counter[tuple[str, str, Example]]:
    """Return where, and by which stage, each training example is read."""
    return Counter((s.client, stage, one) for s in shards for stage, examples in s.stages.items() for one in examples)


@settings(max_examples=300)  # more than half of the worlds are refused
@given(worlds(), st.integers(0, 3), st.data())
def test_no_other_text_is_moved_by_a_text_that_comes_or_goes(
    world: tuple[Corpus, StagedPartition], seed: int, data: st.DataObject
) -> None:
    """A guarantee for single texts compares these two: whose the text is, and what kind it is, must not matter."""
    whole, partition = world
    place = data.draw(st.integers(0, len(whole.examples) - 1))
    found = both_laid_out(partition, whole, Corpus([*whole.examples[:place], *whole.examples[place + 1 :]]), seed)
    if found is not None:
        before, after = map(readings, found)
        assert not after - before
        assert {one for _, _, one in before - after} <= {whole.examples[place]}


@pytest.mark.parametrize("name", ["users", "silos"])
@pytest.mark.parametrize("disjoint", [True, False])
@pytest.mark.parametrize("imitate", ["demonstrations", "preferred"])
def test_each_of_many_texts_can_leave(make: Make, name: str, disjoint: bool, imitate: str) -> None:
    """Among users with one kind of text, with both, and with one that decides between the two."""
    partition = make(f"partition/{name}", shares=THREE, disjoint=disjoint, imitate=imitate)
    kinds = ((False,), (True,), (False, True), (False, False, True), (False, True, True))
    texts = [
        Example(f"u{i:02d}", "all", f"{i} {j}", " So.", " No." if compared else None, "train")
        for i in range(40)
        for j, compared in enumerate(kinds[i % len(kinds)])
    ]
    test = Example("t", "all", "test", " So.", None, "test")
    whole = readings(lay_out(partition, Corpus([*texts, test]))[0])
    for gone in texts:
        rest = Corpus([*(one for one in texts if one is not gone), test])
        left = {reading: count for reading, count in whole.items() if reading[2] != gone}
        assert readings(lay_out(partition, rest)[0]) == left


def test_a_user_whom_the_stage_drawn_cannot_read_is_on_no_client(make: Make) -> None:
    texts = [Example(f"u{i:02d}", "all", str(i), " So.", " No." if i % 2 else None, "train") for i in range(40)]
    test = Example("t", "all", "test", " So.", None, "test")
    for name in ("users", "silos"):
        shards, dropped = lay_out(make(f"partition/{name}", shares=THREE), Corpus([*texts, test]))
        placed = set().union(*users_by_stage(shards).values())
        assert dropped == {"example_unused": 40 - len(placed)} and 0 < len(placed) < 40
        if name == "users":
            assert {shard.client for shard in shards[:-1]} == placed


def test_imitation_reads_what_the_partition_says(make: Make) -> None:
    shares = {"sft": 1.0, "reward": 0.0, "rl": 0.0}
    preferred, dropped = lay_out(make("partition/users", shares=shares, imitate="preferred"), corpus())
    assert all(len(shard.stages["sft"]) == 4 for shard in preferred[:-1]) and dropped == {}
    shown, dropped = lay_out(make("partition/users", shares=shares), corpus())
    assert all(len(shard.stages["sft"]) == 2 for shard in shown[:-1]) and dropped == {"example_unused": 24}
    compared = Corpus([one for one in corpus().examples if one.rejected is not None or one.split == "test"])
    with pytest.raises(UserError, match=r"partition\.imitate=demonstrations: .*partition\.imitate=preferred"):
        lay_out(make("partition/users", shares=shares), compared)
    with pytest.raises(UserError, match=r"partition\.imitate='both'"):
        make("partition/users", imitate="both")


@pytest.mark.parametrize("name", ["users", "silos"])
@pytest.mark.parametrize("disjoint", [True, False])
def test_each_of_many_users_can_leave(make: Make, name: str, disjoint: bool) -> None:
    partition, data = make(f"partition/{name}", shares=THREE, disjoint=disjoint), corpus(users=40, each=1)
    whole = lay_out(partition, data)[0]
    for i in range(40):
        gone = f"u{i:02d}"
        assert of_others(lay_out(partition, without(data, gone))[0], gone) == of_others(whole, gone)


@pytest.mark.parametrize("name", ["users", "silos"])
def test_the_seed_changes_the_layout(make: Make, name: str) -> None:
    partition = make(f"partition/{name}", unseen=2)
    assert lay_out(partition, corpus(users=40), 0) != lay_out(partition, corpus(users=40), 1)
