"""Stages and their users: quotas keep to the shares, and users who can serve one stage alone are not wasted."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedalign.data.corpus import Example
from fedalign.data.corpus_stages import Shares, assign, quotas, readable
from fedalign.errors import UserError
from fedalign.rng import Streams


def example(user: str, compared: bool = False) -> Example:
    return Example(user, "all", "How?", " So.", " No." if compared else None, "train")


@pytest.mark.parametrize(
    ("n", "shares", "expected"),
    [
        (10, {"sft": 0.5, "rl": 0.5}, {"sft": 5, "rl": 5}),
        (10, {"sft": 0.3333, "reward": 0.3333, "rl": 0.3333}, {"sft": 4, "reward": 3, "rl": 3}),
        (7, {"sft": 0.2, "reward": 0.3, "rl": 0.5}, {"sft": 1, "reward": 2, "rl": 4}),
        (3, {"sft": 0.01, "reward": 0.01, "rl": 0.98}, {"sft": 1, "reward": 1, "rl": 1}),
        (5, {"rl": 1.0}, {"rl": 5}),
    ],
)
def test_quotas(n: int, shares: dict[str, float], expected: dict[str, int]) -> None:
    assert quotas(n, shares) == expected


@given(st.integers(3, 200), st.lists(st.floats(0.001, 1.0), min_size=1, max_size=3))
def test_quotas_sum_and_are_near_the_shares(n: int, weights: list[float]) -> None:
    shares = {f"stage {i}": weight / sum(weights) for i, weight in enumerate(weights)}
    found = quotas(n, shares)
    assert sum(found.values()) == n
    assert all(count >= 1 for count in found.values())
    # Off by the rounding, and by what stages without a user are given.
    assert all(abs(count - n * shares[stage]) < len(shares) for stage, count in found.items())


def test_fewer_users_than_stages_are_refused() -> None:
    with pytest.raises(UserError, match=r"disjoint=true: 2 stages \(sft, rl\) need a user each, the data have 1"):
        quotas(1, {"sft": 0.5, "rl": 0.5})


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


def test_a_stage_without_data_is_refused() -> None:
    readers = readable([example("ann"), example("ben")], ["reward", "rl"])
    for disjoint in (True, False):
        with pytest.raises(UserError, match=r"partition\.shares\.reward=0\.4: the data hold no comparisons"):
            assign(readers, Shares(0.0, 0.4, 0.6), disjoint, Streams(0))


def test_a_stage_with_too_few_users_is_refused() -> None:
    examples = [example(f"u{i}", compared=i < 2) for i in range(10)]
    readers = readable(examples, ["reward", "rl"])
    with pytest.raises(UserError, match=r"\.reward=0\.5: 5 of 10 users .* 2 of them have comparisons.*0\.2 or less"):
        assign(readers, Shares(0.0, 0.5, 0.5), True, Streams(0))
    assigned = assign(readers, Shares(0.0, 0.2, 0.8), True, Streams(0))
    assert {user for user, stages in assigned.items() if stages == ("reward",)} == {"u0", "u1"}


@given(
    st.lists(st.sampled_from(["writes", "compares", "both"]), min_size=3, max_size=30),
    st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)).filter(any),
    st.integers(0, 3),
)
def test_quotas_are_met_whenever_they_can_be(kinds: list[str], weights: tuple[int, ...], seed: int) -> None:
    examples = [example(f"u{i:02d}", compared=c) for i, k in enumerate(kinds) for c in (False, True) if _has(k, c)]
    shares = Shares(*(weight / sum(weights) for weight in weights))
    readers = readable(examples, list(shares.served))
    able = {stage: {e.user for e in found} for stage, found in readers.items()}
    everybody = set().union(*able.values())
    try:
        assigned = assign(readers, shares, True, Streams(seed))
    except UserError:
        # Hall's condition for the two stages that cannot learn from everybody fails, or a user for each.
        wanted = quotas(len(everybody), shares.served) if len(everybody) >= len(able) else {}
        assert not wanted or any(len(able[stage]) < n for stage, n in wanted.items())
        return
    assert set(assigned) == everybody
    assert all(len(stages) == 1 and user in able[stages[0]] for user, stages in assigned.items())
    assert Counter(stages[0] for stages in assigned.values()) == quotas(len(everybody), shares.served)
    assert assign(readers, shares, True, Streams(seed)) == assigned


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


@pytest.mark.parametrize("seed", range(8))
def test_users_who_can_serve_one_stage_alone_are_taken_first(seed: int) -> None:
    examples = [example("both"), example("both", compared=True), example("compares", compared=True)]
    examples += [example(f"writes {i}") for i in range(2)]
    readers = readable(examples, ["sft", "reward"])
    assigned = assign(readers, Shares(0.75, 0.25, 0.0), True, Streams(seed))
    assert {user for user, stages in assigned.items() if stages == ("reward",)} == {"compares"}
