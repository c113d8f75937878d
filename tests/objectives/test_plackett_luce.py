"""Plackett-Luce with ties against brute force, inclusion-exclusion, the DPO loss and cross-entropy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedalign.objectives.dpo import dpo_loss
from fedalign.objectives.plackett_luce import concordance, margins, orders_of, ranking_log_likelihood

SEEDS = st.integers(0, 2**32 - 1)
TIERS = st.lists(st.integers(0, 3), min_size=2, max_size=5)


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def log_likelihood(utilities: Tensor, tiers: Sequence[int]) -> Tensor:
    return ranking_log_likelihood(utilities[..., None, :], orders_of(torch.tensor([list(tiers)])))[..., 0]


def chance(utilities: Sequence[float], order: Sequence[int]) -> float:
    """Return the probability of a complete order: one choice after another out of what is left."""
    odds = [math.exp(utilities[at]) for at in order]
    return math.prod(odd / sum(odds[at:]) for at, odd in enumerate(odds))


def brute_force(utilities: Sequence[float], tiers: Sequence[int]) -> float:
    """Return the summed probability of all permutations whose tiers do not fall."""
    present = [at for at, tier in enumerate(tiers) if tier >= 0]
    return sum(
        chance(utilities, order)
        for order in itertools.permutations(present)
        if all(tiers[a] <= tiers[b] for a, b in itertools.pairwise(order))
    )


@given(tiers=st.lists(st.integers(-1, 3), min_size=1, max_size=5), seed=SEEDS)
def test_a_judgment_has_the_probability_of_all_permutations_that_agree(tiers: list[int], seed: int) -> None:
    utilities = draw(len(tiers), seed=seed, scale=2.0)
    assert float(log_likelihood(utilities, tiers).exp()) == pytest.approx(brute_force(utilities.tolist(), tiers))


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (2, 2), (1, 3), (3, 1), (1, 2, 1), (2, 1, 1), (4,)])
def test_probabilities_of_all_rankings_with_tiers_of_given_sizes_sum_to_one(sizes: tuple[int, ...]) -> None:
    pattern = [tier for tier, size in enumerate(sizes) for _ in range(size)]
    rankings = torch.tensor(sorted(set(itertools.permutations(pattern))))
    found = ranking_log_likelihood(draw(4, scale=2.0).expand(len(rankings), 4), orders_of(rankings))
    assert float(found.exp().sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("best", [1, 2, 3, 4])
def test_a_first_tier_has_the_probability_of_inclusion_and_exclusion(best: int) -> None:
    utilities = draw(6, scale=2.0)
    odds = utilities.exp().tolist()
    rest = sum(odds[best:])
    expected = sum(
        (-1) ** size * rest / (rest + sum(chosen))
        for size in range(best + 1)
        for chosen in itertools.combinations(odds[:best], size)
    )
    found = log_likelihood(utilities, [0] * best + [1] * (6 - best))
    assert float(found.exp()) == pytest.approx(expected)


@pytest.mark.parametrize("scale", [0.1, 3.0, 1e4])
def test_a_pair_is_a_pair_of_dpo(scale: float) -> None:
    utilities = draw(200, 2, seed=1, scale=scale).float()
    first = utilities.requires_grad_()
    orders = orders_of(torch.tensor([[0, 1], [1, 0]]).repeat(100, 1))
    found = ranking_log_likelihood(first, orders)
    second = utilities.detach().clone().requires_grad_()
    chosen, rejected = (
        second[torch.arange(200), torch.arange(200) % 2],
        second[torch.arange(200), 1 - torch.arange(200) % 2],
    )
    loss, _ = dpo_loss(chosen, rejected, torch.zeros(200), torch.zeros(200), 1.0)
    torch.testing.assert_close(found, -loss, atol=1e-6, rtol=1e-6)
    found.sum().backward()
    (-loss).sum().backward()
    torch.testing.assert_close(first.grad, second.grad, atol=1e-6, rtol=1e-6)


def test_a_choice_of_the_best_is_cross_entropy() -> None:
    utilities, best = draw(50, 3, scale=2.0), torch.arange(50) % 3
    tiers = torch.ones(50, 3, dtype=torch.int64).scatter(1, best[:, None], 0)
    found = ranking_log_likelihood(utilities, orders_of(tiers))
    torch.testing.assert_close(found, -torch.nn.functional.cross_entropy(utilities, best, reduction="none"))


def test_a_menu_of_responses_that_are_worth_the_same_gives_every_ranking_its_share() -> None:
    found = log_likelihood(torch.zeros(5, dtype=torch.float64), [0, 0, 1, 2, 2])
    assert float(found.exp()) == pytest.approx(4 / math.factorial(5))


@given(tiers=TIERS, seed=SEEDS, shift=st.floats(-100, 100))
def test_only_differences_of_utilities_matter(tiers: list[int], seed: int, shift: float) -> None:
    utilities = draw(len(tiers), seed=seed)
    torch.testing.assert_close(log_likelihood(utilities + shift, tiers), log_likelihood(utilities, tiers))


@given(tiers=TIERS, seed=SEEDS, data=st.data())
def test_the_order_in_which_responses_are_listed_does_not_matter(
    tiers: list[int], seed: int, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(tiers))))
    utilities = draw(len(tiers), seed=seed)
    moved = log_likelihood(utilities[order], [tiers[at] for at in order])
    torch.testing.assert_close(moved, log_likelihood(utilities, tiers))


@given(tiers=TIERS, seed=SEEDS)
def test_absent_responses_and_judgments_around_change_nothing(tiers: list[int], seed: int) -> None:
    utilities = draw(len(tiers), seed=seed)
    rows = torch.tensor([[0, 0, 1, 2, 3, 3], [*tiers, *[-1] * (6 - len(tiers))], [0, 0, 0, 0, 1, 2]])
    padded = torch.full((3, 6), math.nan, dtype=torch.float64)
    padded[0], padded[2], padded[1, : len(tiers)] = draw(6), draw(6), utilities
    padded.requires_grad_()
    found = ranking_log_likelihood(padded, orders_of(rows))
    torch.testing.assert_close(found[1], log_likelihood(utilities, tiers))
    found.sum().backward()
    assert padded.grad is not None
    assert bool(padded.grad.isfinite().all())
    assert not padded.grad[1, len(tiers) :].any()


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_and_sum_to_zero_in_a_menu(scale: float, dtype: torch.dtype) -> None:
    tiers = torch.tensor([[0, 0, 1, -1], [3, 2, 1, 0], [0, 0, 0, 1], [0, 1, 1, 1], [0, 0, 0, 0], [-1, -1, -1, -1]])
    utilities = draw(3, 6, 4, scale=scale).to(dtype).requires_grad_()
    found = ranking_log_likelihood(utilities, orders_of(tiers))
    found.sum().backward()
    assert utilities.grad is not None
    assert bool(found.isfinite().all() and utilities.grad.isfinite().all())
    assert bool((found <= 0).all())
    assert not found[:, 4:].any()
    assert float(utilities.grad.sum(-1).abs().max()) < 1e-5


def test_gradients_are_those_of_differences() -> None:
    orders = orders_of(torch.tensor([[0, 0, 1, 2], [1, 0, 1, 2], [0, 1, 1, -1]]))
    utilities = draw(2, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda u: ranking_log_likelihood(u, orders), (utilities,))


def test_chosen_rows_are_judged_as_in_the_whole() -> None:
    tiers = torch.tensor([[0, 0, 1], [2, 1, 0], [0, 1, 1], [0, 1, -1]])
    utilities, rows = draw(5, 4, 3), torch.tensor([3, 0, 0])
    orders = orders_of(tiers)
    whole = ranking_log_likelihood(utilities, orders)
    torch.testing.assert_close(ranking_log_likelihood(utilities[:, rows], orders.rows(rows)), whole[:, rows])


def test_no_judgments_are_none() -> None:
    orders = orders_of(torch.zeros(0, 3, dtype=torch.int64))
    assert ranking_log_likelihood(torch.zeros(2, 0, 3), orders).shape == (2, 0)


def test_a_last_tier_of_many_is_one_order_and_a_first_tier_of_many_is_refused() -> None:
    assert orders_of(torch.tensor([[0, *[1] * 30]])).index.shape == (1, 1, 31)
    with pytest.raises(ValueError, match=r"judgment 1 with tiers \[0, 0, 0, 0, 0, 0, 0, 0, 1\] agrees with more than"):
        orders_of(torch.tensor([[*range(9)], [*[0] * 8, 1]]))


@given(tiers=TIERS, seed=SEEDS)
def test_pairs_are_counted_one_by_one(tiers: list[int], seed: int) -> None:
    utilities = draw(len(tiers), seed=seed).round()
    pairs = [
        float(utilities[a] - utilities[b])
        for a, b in itertools.permutations(range(len(tiers)), 2)
        if tiers[a] < tiers[b]
    ]
    row = torch.tensor([[*tiers, -1]])
    padded = torch.cat([utilities, torch.tensor([math.nan])])[None, None]
    correct, strict = concordance(padded, row)
    assert float(correct) == sum((difference > 0) + (difference == 0) / 2 for difference in pairs)
    assert float(strict) == len(pairs)
    assert float(margins(padded, row)) == pytest.approx(sum(pairs) / len(pairs) if pairs else 0.0)


def test_rounding_makes_no_ranking_likelier_than_certain() -> None:
    tiers = torch.tensor([[0, 0, 0, 1]]).expand(1000, 4)
    # The fourth response is all but certainly the last.
    utilities = draw(1000, 4).float() - torch.tensor([0.0, 0.0, 0.0, 40.0])
    found = ranking_log_likelihood(utilities, orders_of(tiers))
    assert -1e-6 < float(found.min()) <= float(found.max()) <= 0.0
