"""How judgments are drawn and told: Plackett-Luce frequencies against the closed form, and what each form keeps."""

from __future__ import annotations

import itertools
from collections import Counter
from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from fedalign.data.ranking_forms import (
    MOST_ORDERS,
    Form,
    Tiers,
    agreeing_orders,
    check_form,
    drawn_tiers,
    says_something,
    told,
    with_ties,
)
from fedalign.errors import UserError
from fedalign.objectives import plackett_luce
from fedalign.objectives.plackett_luce import orders_of

tiers_of_four = st.lists(st.integers(0, 3), min_size=2, max_size=6).map(
    lambda ranks: tuple(sorted(set(ranks)).index(rank) for rank in ranks)
)


@pytest.mark.parametrize("sharpness", [0.0, 1.0, 2.5])
def test_orders_are_as_frequent_as_plackett_luce_says(sharpness: float) -> None:
    utilities, rng, n = np.array([0.4, -0.3, 0.1]), np.random.default_rng(0), 6000
    seen = Counter(drawn_tiers(utilities, sharpness, rng) for _ in range(n))
    expected = {}
    for order in itertools.permutations(range(3)):
        weights = np.exp(sharpness * utilities[list(order)])
        probability = prod(weights[t] / weights[t:].sum() for t in range(3))
        expected[tuple(order.index(response) for response in range(3))] = n * float(probability)
    assert set(seen) <= set(expected)
    assert chisquare([seen[tiers] for tiers in expected], list(expected.values())).pvalue > 1e-3


def test_without_noise_the_same_utility_is_the_same_tier() -> None:
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    assert drawn_tiers([0.1 + 0.2, 1.0, 0.3, -1.0], None, rng) == (1, 0, 1, 2)
    assert rng.bit_generator.state == before


@pytest.mark.parametrize(
    ("tiers", "form", "top", "expected"),
    [
        ((1, 0), "pair", None, (1, 0)),
        ((2, 0, 1), "full", None, (2, 0, 1)),
        ((2, 0, 1), "best", None, (1, 0, 1)),
        ((1, 0), "best", None, (1, 0)),
        ((3, 0, 2, 1), "top", 1, (1, 0, 1, 1)),
        ((3, 0, 2, 1), "top", 2, (2, 0, 2, 1)),
        ((3, 0, 2, 1), "top", 3, (3, 0, 2, 1)),
        # Two tie for the best: both are told.
        ((0, 0, 1, 2), "best", None, (0, 0, 1, 1)),
        ((0, 0, 1, 2), "top", 2, (0, 0, 1, 1)),
        ((0, 0, 0), "best", None, (0, 0, 0)),
    ],
)
def test_what_a_form_tells(tiers: Tiers, form: Form, top: int | None, expected: Tiers) -> None:
    assert told(tiers, form, top) == expected


@given(tiers_of_four, st.integers(1, 5))
def test_told_tiers_have_no_gaps_and_contradict_nothing(tiers: Tiers, top: int) -> None:
    for less in (told(tiers, "best", None), told(tiers, "top", top)):
        assert set(less) == set(range(max(less) + 1))
        assert all(less[i] <= less[j] for i in range(len(tiers)) for j in range(len(tiers)) if tiers[i] < tiers[j])
        assert says_something(less) == says_something(tiers)


@given(tiers_of_four, st.floats(0.0, 0.99), st.integers(0, 99))
def test_ties_merge_neighbours_only(tiers: Tiers, ties: float, seed: int) -> None:
    merged = with_ties(tiers, ties, np.random.default_rng(seed))
    assert set(merged) == set(range(max(merged) + 1))
    assert all(merged[i] <= merged[j] for i in range(len(tiers)) for j in range(len(tiers)) if tiers[i] <= tiers[j])


def test_ties_come_as_often_as_they_should() -> None:
    rng, n = np.random.default_rng(0), 4000
    seen = Counter(with_ties((1, 2, 0), 0.3, rng) for _ in range(n))
    expected = {(1, 2, 0): 0.49, (0, 1, 0): 0.21, (1, 1, 0): 0.21, (0, 0, 0): 0.09}
    assert set(seen) == set(expected)
    assert chisquare([seen[tiers] for tiers in expected], [n * p for p in expected.values()]).pvalue > 1e-3
    assert with_ties((1, 2, 0), 0.0, rng) == (1, 2, 0)


def test_says_something() -> None:
    assert says_something((0, 1)) and not says_something((0, 0))


@pytest.mark.parametrize(
    ("form", "responses", "top", "message"),
    [
        ("pair", 3, None, "data.responses=3; set it to 2"),
        ("top", 3, None, r"data\.top=None: it must be between 1 and data.responses - 1, which is 2"),
        ("top", 3, 3, r"data\.top=3"),
        ("top", 3, 0, r"data\.top=0"),
        ("full", 3, 1, r"data\.top=1 is of no use with data\.form=full"),
    ],
)
def test_forms_that_menus_do_not_fit(form: Form, responses: int, top: int | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_form(form, responses, top)


def test_forms_that_menus_fit() -> None:
    check_form("pair", 2, None)
    check_form("best", 2, None)
    check_form("full", 5, None)
    check_form("top", 3, 2)


@given(tiers_of_four)
def test_as_many_orders_agree_as_the_likelihood_adds_up(tiers: Tiers) -> None:
    assert agreeing_orders(tiers) == int(orders_of(torch.tensor([tiers])).valid.sum())


@pytest.mark.parametrize(
    "tiers", [(0,) * 7 + (1, 1), (0,) * 8 + (1,), (0,) * 7 + (1, 1, 2), (0,) * 6 + (1,) * 3 + (2,)]
)
def test_data_and_likelihood_have_the_same_limit(tiers: Tiers) -> None:
    assert MOST_ORDERS == plackett_luce.MOST_ORDERS
    if agreeing_orders(tiers) <= MOST_ORDERS:
        assert orders_of(torch.tensor([tiers])).valid.shape == (1, agreeing_orders(tiers))
    else:
        with pytest.raises(ValueError, match="more than 5040 orders"):
            orders_of(torch.tensor([tiers]))
