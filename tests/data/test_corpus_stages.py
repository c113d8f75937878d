"""Stages and their users: shares hold in expectation, and who serves what depends on nobody else."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedalign.data.corpus import Example
from fedalign.data.corpus_stages import Shares, assign, readable
from fedalign.errors import UserError
from fedalign.rng import Streams


def example(user: str, compared: bool = False) -> Example:
    return Example(user, "all", "How?", " So.", " No." if compared else None, "train")


def near(count: int, n: int, share: float) -> bool:
    """Whether a count is within four standard deviations of a binomial's mean."""
    return abs(count - n * share) <= 4 * math.sqrt(n * share * (1 - share))


def test_shares_sum_to_one_within_rounding() -> None:
    assert Shares(0.333, 0.333, 0.333).served == {"sft": 0.333, "reward": 0.333, "rl": 0.333}
    assert Shares(0.5, 0.0, 0.5).served == {"sft": 0.5, "rl": 0.5}
    with pytest.raises(UserError, match=r"partition\.shares=.*they sum to 1\.3; make them sum to 1"):
        Shares(0.5, 0.3, 0.5)


def test_what_each_stage_can_learn_from() -> None:
    written, compared = example("ann"), example("ann", compared=True)
    stages = ["sft", "reward", "rl"]
    both = [written, compared]
    assert readable(both, stages) == {"sft": [written], "reward": [compared], "rl": both}
    assert readable([compared], stages) == {"sft": [compared], "reward": [compared], "rl": [compared]}
    assert readable([written], stages) == {"sft": [written], "reward": [], "rl": [written]}


def test_what_imitation_reads_of_a_user_is_that_user_s_matter() -> None:
    compared = example("ben", compared=True)
    for others in ([], [example("ann")], [example("ann"), example("ann", compared=True)]):
        found = readable([*others, compared], ["sft"])["sft"]
        assert [one for one in found if one.user == "ben"] == [compared]
    assert compared not in readable([compared, example("ben")], ["sft"])["sft"]


def test_a_stage_without_data_is_refused() -> None:
    readers = readable([example("ann"), example("ben")], ["reward", "rl"])
    for disjoint in (True, False):
        with pytest.raises(UserError, match=r"partition\.shares\.reward=0\.4: the data hold no comparisons"):
            assign(readers, Shares(0.0, 0.4, 0.6), disjoint, Streams(0))


def test_a_stage_to_which_nobody_came_is_refused() -> None:
    readers = readable([example("ann"), example("ann", compared=True)], ["sft", "reward", "rl"])
    shares = Shares(0.3, 0.3, 0.4)
    with pytest.raises(
        UserError, match=r"partition\.shares\.\w+=0\.[34]: none of 1 users came .*disjoint=false"
    ) as one:
        assign(readers, shares, True, Streams(0))
    assert "\n" not in str(one.value)
    assert assign(readers, shares, False, Streams(0)) == {"ann": ("sft", "reward", "rl")}


@pytest.mark.parametrize("shares", [Shares(0.5, 0.0, 0.5), Shares(0.2, 0.3, 0.5), Shares(0.333, 0.333, 0.333)])
@pytest.mark.parametrize("seed", range(3))
def test_shares_hold_in_expectation(shares: Shares, seed: int) -> None:
    n = 600
    examples = [example(f"u{i}", compared) for i in range(n) for compared in (False, True)]
    assigned = assign(readable(examples, list(shares.served)), shares, True, Streams(seed))
    counts = Counter(stage for stages in assigned.values() for stage in stages)
    assert set(counts) == set(shares.served) and sum(counts.values()) == n
    total = sum(shares.served.values())
    assert all(near(counts[stage], n, share / total) for stage, share in shares.served.items())


def test_stages_that_can_learn_from_a_user_share_it_in_proportion() -> None:
    writers, comparers = ([f"{kind} {i}" for i in range(600)] for kind in ("writes", "compares"))
    examples = [*map(example, writers), *(example(user, compared=True) for user in comparers)]
    shares = Shares(0.2, 0.5, 0.3)
    assigned = assign(readable(examples, list(shares.served)), shares, True, Streams(0))
    written = Counter(assigned[user] for user in writers)
    assert set(written) == {("sft",), ("rl",)} and near(written["sft",], 600, 0.4)
    compared = Counter(assigned[user] for user in comparers)
    assert all(near(compared[stage,], 600, share) for stage, share in shares.served.items())


@given(
    st.lists(st.sampled_from(["writes", "compares", "both"]), min_size=2, max_size=20),
    st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)).filter(any),
    st.booleans(),
    st.integers(0, 3),
)
def test_the_laws_of_assignment(kinds: list[str], weights: tuple[int, ...], disjoint: bool, seed: int) -> None:
    examples = [example(f"u{i:02d}", c) for i, kind in enumerate(kinds) for c in (False, True) if _has(kind, c)]
    shares = Shares(*(weight / sum(weights) for weight in weights))
    readers = readable(examples, list(shares.served))
    able = {stage: {e.user for e in found} for stage, found in readers.items()}
    everybody = sorted(set().union(*able.values()))
    try:
        assigned = assign(readers, shares, disjoint, Streams(seed))
    except UserError as error:
        assert "partition.shares." in str(error) and "\n" not in str(error)
        return
    assert list(assigned) == everybody
    assert all(user in able[stage] for user, stages in assigned.items() for stage in stages)
    assert {stage for stages in assigned.values() for stage in stages} == set(shares.served)
    for user, stages in assigned.items():
        assert len(stages) == (1 if disjoint else sum(user in users for users in able.values()))
    assert assign(readers, shares, disjoint, Streams(seed)) == assigned


def _has(kind: str, compared: bool) -> bool:
    return kind == "both" or (kind == "compares") == compared


def test_the_seed_decides_who_serves_what() -> None:
    readers = readable([example(f"u{i}") for i in range(40)], ["sft", "rl"])
    first, again, other = (assign(readers, Shares(0.5, 0.0, 0.5), True, Streams(seed)) for seed in (0, 0, 1))
    assert first == again != other


def test_without_disjoint_stages_everybody_serves_what_they_can() -> None:
    examples = [example("ann"), example("ben"), example("ben", compared=True)]
    assigned = assign(readable(examples, ["sft", "reward", "rl"]), Shares(0.2, 0.3, 0.5), False, Streams(0))
    assert assigned == {"ann": ("sft", "rl"), "ben": ("sft", "reward", "rl")}
