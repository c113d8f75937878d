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
from fedalign.federation.sampling import FixedSampler, FractionSampler, PoissonSampler, Sampler

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
