"""Stages and their users: shares hold in expectation, and who serves what depends on nobody else."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedalign.data.corpus import STAGES, Example
from fedalign.data.corpus_stages import Imitate, Shares, assign, readable
from fedalign.errors import UserError
from fedalign.rng import Streams

IMITATE: tuple[Imitate, ...] = ("demonstrations", "preferred")


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
    assert readable(both, stages, "demonstrations") == {"sft": [written], "reward": [compared], "rl": both}
    assert readable(both, stages, "preferred") == {"sft": both, "reward": [compared], "rl": both}
    for imitate in IMITATE:
        assert readable([written], stages, imitate) == {"sft": [written], "reward": [], "rl": [written]}
        assert readable([], stages, imitate) == {"sft": [], "reward": [], "rl": []}


def test_imitation_of_comparisons_alone_has_to_be_asked_for() -> None:
    compared = [example("ann", compared=True)]
    with pytest.raises(
        UserError, match=r"partition\.imitate=demonstrations: .*; set partition\.imitate=preferred to"
    ) as one:
        readable(compared, ["sft", "reward"], "demonstrations")
    assert "\n" not in str(one.value)
    assert readable(compared, ["sft", "reward"], "preferred") == {"sft": compared, "reward": compared}
    assert readable(compared, ["reward", "rl"], "demonstrations") == {"reward": compared, "rl": compared}


@given(st.lists(st.tuples(st.sampled_from(["ann", "ben"]), st.booleans()), max_size=8), st.sampled_from(IMITATE))
def test_what_a_stage_reads_of_an_example_is_that_example_s_matter(
    records: list[tuple[str, bool]], imitate: Imitate
) -> None:
    examples = [example(*record) for record in [("eve", False), *records]]
    alone = [readable([example("eve"), one], STAGES, imitate) for one in examples]
    for stage, found in readable(examples, STAGES, imitate).items():
        assert found == [one for one, of in zip(examples, alone, strict=True) if one in of[stage]]


def test_a_stage_without_data_is_refused() -> None:
    readers = readable([example("ann"), example("ben")], ["reward", "rl"], "demonstrations")
    for disjoint in (True, False):
        with pytest.raises(UserError, match=r"partition\.shares\.reward=0\.4: the data hold no comparisons"):
            assign(readers, Shares(0.0, 0.4, 0.6), disjoint, Streams(0))


def test_a_stage_to_which_nobody_came_is_refused() -> None:
    readers = readable([example("ann"), example("ann", compared=True)], STAGES, "demonstrations")
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
    assigned = assign(readable(examples, list(shares.served), "demonstrations"), shares, True, Streams(seed))
    counts = Counter(stage for stages in assigned.values() for stage in stages)
    assert set(counts) == set(shares.served) and sum(counts.values()) == n
    total = sum(shares.served.values())
    assert all(near(counts[stage], n, share / total) for stage, share in shares.served.items())


def test_a_user_whom_the_stage_drawn_cannot_read_serves_none() -> None:
    writers, comparers = ([f"{kind} {i}" for i in range(600)] for kind in ("writes", "compares"))
    examples = [*map(example, writers), *(example(user, compared=True) for user in comparers)]
    shares = Shares(0.2, 0.5, 0.3)
    assigned = assign(readable(examples, STAGES, "demonstrations"), shares, True, Streams(0))
    written = Counter(assigned.get(user) for user in writers)
    assert set(written) == {("sft",), None, ("rl",)} and near(written[None], 600, 0.5)
    compared = Counter(assigned.get(user) for user in comparers)
    assert set(compared) == {None, ("reward",), ("rl",)} and near(compared[None], 600, 0.2)
    # Whoever has all kinds of texts shows what was drawn.
    everything = [one for user in (*writers, *comparers) for one in (example(user), example(user, compared=True))]
    drawn = assign(readable(everything, STAGES, "demonstrations"), shares, True, Streams(0))
    assert {user: drawn[user] for user in assigned} == assigned


def test_the_draw_is_the_one_of_recorded_runs() -> None:
    readers = readable([example(f"user-{i:05d}") for i in range(1, 13)], ["sft", "rl"], "demonstrations")
    assigned = assign(readers, Shares(0.5, 0.0, 0.5), True, Streams(0))
    assert "".join(stages[0][0] for stages in assigned.values()) == "ssssrsrrrsss"


@given(
    st.lists(st.sampled_from(["writes", "compares", "both"]), min_size=2, max_size=20),
    st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)).filter(any),
    st.booleans(),
    st.sampled_from(IMITATE),
    st.integers(0, 3),
)
def test_the_laws_of_assignment(
    kinds: list[str], weights: tuple[int, ...], disjoint: bool, imitate: Imitate, seed: int
) -> None:
    examples = [example(f"u{i:02d}", c) for i, kind in enumerate(kinds) for c in (False, True) if _has(kind, c)]
    shares = Shares(*(weight / sum(weights) for weight in weights))
    if shares.sft and imitate == "demonstrations" and set(kinds) == {"compares"}:
        return  # refused before users are assigned
    readers = readable(examples, list(shares.served), imitate)
    able = {stage: {e.user for e in found} for stage, found in readers.items()}
    everybody = sorted(set().union(*able.values()))
    try:
        assigned = assign(readers, shares, disjoint, Streams(seed))
    except UserError as error:
        assert "partition.shares." in str(error) and "\n" not in str(error)
        return
    assert list(assigned) == [user for user in everybody if user in assigned]
    assert disjoint or set(assigned) == set(everybody)
    assert all(user in able[stage] for user, stages in assigned.items() for stage in stages)
    assert {stage for stages in assigned.values() for stage in stages} == set(shares.served)
    for user, stages in assigned.items():
        assert len(stages) == (1 if disjoint else sum(user in users for users in able.values()))
    assert assign(readers, shares, disjoint, Streams(seed)) == assigned


def _has(kind: str, compared: bool) -> bool:
    return kind == "both" or (kind == "compares") == compared


def test_the_seed_decides_who_serves_what() -> None:
    readers = readable([example(f"u{i}") for i in range(40)], ["sft", "rl"], "demonstrations")
    first, again, other = (assign(readers, Shares(0.5, 0.0, 0.5), True, Streams(seed)) for seed in (0, 0, 1))
    assert first == again != other


def test_without_disjoint_stages_everybody_serves_what_they_can() -> None:
    examples = [example("ann"), example("ben"), example("ben", compared=True)]
    assigned = assign(readable(examples, STAGES, "demonstrations"), Shares(0.2, 0.3, 0.5), False, Streams(0))
    assert assigned == {"ann": ("sft", "rl"), "ben": ("sft", "reward", "rl")}
