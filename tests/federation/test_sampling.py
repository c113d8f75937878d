"""Cohorts: sizes, order, and the statistics of each sampler."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from fedalign.errors import UserError
from fedalign.federation.sampling import CyclicSampler, FixedSampler, FractionSampler, PoissonSampler, Sampler
from fedalign.privacy.scheme import Sampling, Scheme

CLIENTS = [f"c{place}" for place in range(10)]


def cohorts(sampler: Sampler, number: int, clients: list[str] | None = None) -> list[list[str]]:
    generator = np.random.default_rng(0)
    return [sampler.sample(CLIENTS if clients is None else clients, generator) for _ in range(number)]


@given(
    sampler=st.one_of(
        st.builds(FractionSampler, st.floats(0.01, 1)),
        st.builds(FixedSampler, st.integers(1, 10)),
        st.builds(PoissonSampler, st.floats(0.01, 1)),
    ),
    seed=st.integers(0, 999),
)
def test_a_cohort_keeps_the_order_of_clients_and_follows_from_the_seed(sampler: Sampler, seed: int) -> None:
    cohort = sampler.sample(CLIENTS, np.random.default_rng(seed))
    assert cohort == [client for client in CLIENTS if client in set(cohort)]
    assert len(set(cohort)) == len(cohort)
    assert cohort == sampler.sample(CLIENTS, np.random.default_rng(seed))


@pytest.mark.parametrize(
    ("fraction", "clients", "size"), [(1.0, 7, 7), (0.5, 4, 2), (0.25, 10, 2), (0.01, 5, 1), (0.3, 1, 1)]
)
def test_a_fraction_is_rounded_and_never_empty(fraction: float, clients: int, size: int) -> None:
    drawn = cohorts(FractionSampler(fraction), 20, CLIENTS[:clients])
    assert {len(cohort) for cohort in drawn} == {size}


@pytest.mark.parametrize("sampler", [FractionSampler(0.3), FixedSampler(3)])
def test_every_client_is_equally_likely(sampler: Sampler) -> None:
    counts = Counter(client for cohort in cohorts(sampler, 2000) for client in cohort)
    assert sum(counts.values()) == 6000
    assert chisquare([counts[client] for client in CLIENTS]).pvalue > 1e-3


def test_every_pair_is_equally_likely() -> None:
    counts = Counter(tuple(cohort) for cohort in cohorts(FixedSampler(2), 4000, CLIENTS[:5]))
    assert len(counts) == 10
    assert chisquare(list(counts.values())).pvalue > 1e-3


def test_more_clients_than_there_are_cannot_be_drawn() -> None:
    with pytest.raises(UserError, match=r"federation\.sampler\.size=11 but only 10 clients train; lower it"):
        cohorts(FixedSampler(11), 1)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_poisson_coins_are_independent_and_have_the_rate(rate: float) -> None:
    rounds = 4000
    drawn = cohorts(PoissonSampler(rate), rounds)
    coins = np.array([[client in cohort for client in CLIENTS] for cohort in (set(c) for c in drawn)])
    error = math.sqrt(rate * (1 - rate) / rounds)
    assert np.abs(coins.mean(0) - rate).max() < 4.5 * error
    correlation = np.corrcoef(coins.T) - np.eye(10)
    assert np.abs(correlation).max() < 4.5 / math.sqrt(rounds)
    sizes = coins.sum(1)
    assert sizes.var() == pytest.approx(10 * rate * (1 - rate), rel=0.15)


def test_a_poisson_cohort_may_be_empty_and_may_be_everybody() -> None:
    sizes = {len(cohort) for cohort in cohorts(PoissonSampler(0.5), 200, CLIENTS[:3])}
    assert sizes == {0, 1, 2, 3}
    assert cohorts(PoissonSampler(1.0), 1) == [CLIENTS]


def test_groups_take_turns_and_everybody_has_one() -> None:
    sampler = CyclicSampler(4)
    turns = [sampler.sample(CLIENTS, np.random.default_rng(0), number) for number in range(1, 9)]
    assert turns[:4] == turns[4:]
    assert turns[0] == ["c0", "c4", "c8"]
    assert sorted(client for turn in turns[:4] for client in turn) == CLIENTS


@given(groups=st.integers(1, 10), rounds=st.integers(1, 30))
def test_rounds_of_a_client_are_as_far_apart_as_there_are_groups(groups: int, rounds: int) -> None:
    sampler, last = CyclicSampler(groups), dict[str, int]()
    for number in range(1, rounds + 1):
        for client in sampler.sample(CLIENTS, np.random.default_rng(0), number):
            assert number - last.get(client, -groups) >= groups
            last[client] = number
    assert sampler.describe(10).separation == groups


def test_more_groups_than_clients_are_refused() -> None:
    with pytest.raises(UserError, match=r"federation\.sampler\.groups=11 but only 10 clients train; lower it"):
        CyclicSampler(11).check(10)
    CyclicSampler(10).check(10)


DESCRIBED = {
    FractionSampler(0.25): Sampling(Scheme.FIXED_SIZE, 10, 2.0),
    FractionSampler(0.99): Sampling(Scheme.EVERYONE, 10, 10.0),
    FractionSampler(0.01): Sampling(Scheme.FIXED_SIZE, 10, 1.0),
    FixedSampler(3): Sampling(Scheme.FIXED_SIZE, 10, 3.0),
    FixedSampler(10): Sampling(Scheme.EVERYONE, 10, 10.0),
    PoissonSampler(0.25): Sampling(Scheme.POISSON, 10, 2.5),
    PoissonSampler(1.0): Sampling(Scheme.EVERYONE, 10, 10.0),
    CyclicSampler(4): Sampling(Scheme.CYCLIC, 10, 2.5, 4),
    CyclicSampler(1): Sampling(Scheme.EVERYONE, 10, 10.0, 1),
}


@pytest.mark.parametrize("sampler", DESCRIBED)
def test_the_accountant_is_told_how_cohorts_come_about(sampler: Sampler) -> None:
    told = sampler.describe(10)
    assert told == DESCRIBED[sampler]
    sizes = [len(sampler.sample(CLIENTS, np.random.default_rng(seed), seed + 1)) for seed in range(400)]
    assert np.mean(sizes) == pytest.approx(told.expected, rel=0.1)
    # Only coins make cohorts whose size is random; only groups make it change in a fixed order.
    assert (len(set(sizes)) == 1) == (told.scheme in (Scheme.FIXED_SIZE, Scheme.EVERYONE))
