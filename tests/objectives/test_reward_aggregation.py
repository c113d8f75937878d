"""Reward aggregation against loops over groups, closed forms, and what must hold for any rewards."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedalign.objectives.reward_aggregation import (
    AdaptiveAlpha,
    MaxRewards,
    MeanRewards,
    MinRewards,
    RewardAggregation,
    Scaling,
    adaptive_weights,
    fairness_index,
    updated_history,
    weighted_log_mean_exp,
)

SIZES = st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(0, 10_000))
SIMPLE = (MeanRewards(), MinRewards(), MaxRewards())
EVER = 2.0
"""A threshold that no fairness index reaches: the weights always act."""


def alpha(threshold: float = EVER, scaling: Scaling = "weighted", memory: float = 0.8) -> AdaptiveAlpha:
    return AdaptiveAlpha(temperature=0.1, memory=memory, threshold=threshold, scaling=scaling)


ALL: tuple[RewardAggregation, ...] = (*SIMPLE, alpha(), alpha(0.9), alpha(scaling="rescaled"))


def draw(sizes: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Return rewards of G groups for B responses, and histories."""
    groups, responses, seed = sizes
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.rand(groups, responses, generator=generator, dtype=torch.float64)
    return rewards, torch.rand(groups, generator=generator, dtype=torch.float64)


def by_hand(rewards: list[list[float]], history: list[float], scaling: str, temperature: float = 0.1) -> list[float]:
    """Adaptive alpha as the note writes it, without tensors."""
    raw = [math.exp((1 - h) / temperature) for h in history]
    weights = [value / sum(raw) for value in raw]
    groups = len(rewards)
    values = []
    for response in range(len(rewards[0])):
        column = [row[response] for row in rewards]
        if scaling == "weighted":
            values.append(math.log(sum(a * math.exp(r) for a, r in zip(weights, column, strict=True))))
            continue
        factor = groups if scaling == "rescaled" else 1
        powers = [math.exp(factor * a * r) for a, r in zip(weights, column, strict=True)]
        values.append(math.log(sum(powers) / groups))
    return values


@given(sizes=SIZES)
def test_mean_min_and_max_are_those_of_each_response(sizes: tuple[int, int, int]) -> None:
    rewards, history = draw(sizes)
    columns = rewards.T.tolist()
    each = [[sum(c) / len(c) for c in columns], [min(c) for c in columns], [max(c) for c in columns]]
    for aggregation, values in zip(SIMPLE, each, strict=True):
        expected = torch.tensor(values, dtype=torch.float64)
        torch.testing.assert_close(aggregation.combine(rewards, history), expected)


@given(sizes=SIZES, scaling=st.sampled_from(["weighted", "rescaled", "published"]))
def test_adaptive_alpha_is_the_formula(sizes: tuple[int, int, int], scaling: Scaling) -> None:
    rewards, history = draw(sizes)
    got = alpha(scaling=scaling).combine(rewards, history)
    assert got.tolist() == pytest.approx(by_hand(rewards.tolist(), history.tolist(), scaling))


@given(sizes=SIZES)
def test_fair_rewards_are_averaged(sizes: tuple[int, int, int]) -> None:
    rewards, history = draw(sizes)
    torch.testing.assert_close(alpha(threshold=0.0).combine(rewards, history), rewards.mean(0))


@given(sizes=SIZES)
def test_aggregates_lie_between_the_lowest_and_the_highest_reward(sizes: tuple[int, int, int]) -> None:
    rewards, history = draw(sizes)
    low, high = rewards.amin(0), rewards.amax(0)
    for aggregation in (*SIMPLE, alpha(), alpha(0.9)):
        got = aggregation.combine(rewards, history)
        assert bool((got >= low - 1e-9).all() and (got <= high + 1e-9).all()), aggregation


@given(sizes=SIZES)
def test_the_order_of_groups_does_not_matter(sizes: tuple[int, int, int]) -> None:
    rewards, history = draw(sizes)
    order = torch.randperm(len(rewards), generator=torch.Generator().manual_seed(sizes[2]))
    for aggregation in (*ALL, alpha(scaling="published")):
        torch.testing.assert_close(
            aggregation.combine(rewards[order], history[order]), aggregation.combine(rewards, history)
        )


@given(sizes=SIZES, place=st.integers(0, 29), rise=st.floats(0, 1))
def test_a_higher_reward_never_lowers_the_aggregate(sizes: tuple[int, int, int], place: int, rise: float) -> None:
    rewards, history = draw(sizes)
    more = rewards.clone()
    more.view(-1)[place % more.numel()] += rise
    # Not with a threshold: a rise can make rewards unfair, and then another formula applies.
    for aggregation in (*SIMPLE, *(alpha(scaling=s) for s in ("weighted", "rescaled", "published"))):
        change = aggregation.combine(more, history) - aggregation.combine(rewards, history)
        assert bool((change >= -1e-9).all()), aggregation


@given(sizes=SIZES)
def test_groups_that_agree_give_their_reward_whatever_their_histories(sizes: tuple[int, int, int]) -> None:
    rewards, history = draw(sizes)
    agreed = rewards[:1].expand_as(rewards)
    for aggregation in (*SIMPLE, alpha(), alpha(0.9)):
        torch.testing.assert_close(aggregation.combine(agreed, history), agreed[0])


@given(groups=st.integers(2, 12), reward=st.floats(0.1, 1.0))
def test_the_published_scale_jumps_where_rewards_become_fair_and_ours_does_not(groups: int, reward: float) -> None:
    """Groups that agree and fared alike: the plain mean on one side of the threshold, the weights on the other."""
    rewards, history = torch.full((groups, 3), reward, dtype=torch.float64), torch.full((groups,), 0.5)
    drops: dict[Scaling, int] = {"published": groups, "weighted": 1, "rescaled": 1}
    for scaling, drop in drops.items():
        fair = alpha(threshold=1.0 - 1e-9, scaling=scaling).combine(rewards, history)
        unfair = alpha(scaling=scaling).combine(rewards, history)
        torch.testing.assert_close(unfair, fair / drop)


@given(sizes=SIZES)
def test_the_log_mean_exp_exceeds_the_weighted_mean_by_at_most_an_eighth_of_the_squared_range(
    sizes: tuple[int, int, int],
) -> None:
    rewards, history = draw(sizes)
    weights = adaptive_weights(history, 0.1)
    excess = weighted_log_mean_exp(rewards, weights, "weighted") - (weights[:, None] * rewards).sum(0)
    spread = rewards.amax(0) - rewards.amin(0)
    assert bool((excess >= -1e-9).all())
    assert bool((excess <= spread.square() / 8 + 1e-9).all())


def test_rescaled_rewards_of_groups_that_agree_still_move_with_history() -> None:
    """Why weights stand before the exponential: inside, the scale depends on how unequal they are."""
    rewards, history = torch.full((4, 1), 0.5, dtype=torch.float64), torch.tensor([0.1, 0.9, 0.9, 0.9])
    inside = weighted_log_mean_exp(rewards, adaptive_weights(history, 0.1).double(), "rescaled")
    before = weighted_log_mean_exp(rewards, adaptive_weights(history, 0.1).double(), "weighted")
    assert float(inside) > 0.9
    assert float(before) == pytest.approx(0.5)


def test_a_group_that_fared_badly_decides_more() -> None:
    rewards = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    level = alpha().combine(rewards, torch.tensor([0.5, 0.5]))
    assert float(level[0]) == pytest.approx(float(level[1]))
    tilted = alpha().combine(rewards, torch.tensor([0.3, 0.6]))
    assert tilted[0] > tilted[1]


@given(sizes=SIZES)
def test_weights_sum_to_one_and_fall_with_history(sizes: tuple[int, int, int]) -> None:
    _, history = draw(sizes)
    weights = adaptive_weights(history, 0.1)
    assert float(weights.sum()) == pytest.approx(1.0)
    assert weights[history.argsort()].tolist() == sorted(weights.tolist(), reverse=True)


def test_a_group_without_history_is_taken_as_the_average_one() -> None:
    weights = adaptive_weights(torch.tensor([0.2, torch.nan, 0.4]), 0.1)
    torch.testing.assert_close(weights, adaptive_weights(torch.tensor([0.2, 0.3, 0.4]), 0.1))
    assert adaptive_weights(torch.tensor([torch.nan, torch.nan]), 0.1).tolist() == [0.5, 0.5]


def test_history_is_a_moving_average_that_begins_with_the_first_round() -> None:
    rewards = [torch.tensor([[0.2, 0.4], [1.0, 0.0]]), torch.tensor([[0.8, 0.6], [0.5, 0.5]])]
    history = torch.full((2,), torch.nan)
    for each in rewards:
        history = updated_history(history, each, 0.8)
    assert history.tolist() == pytest.approx([0.8 * 0.3 + 0.2 * 0.7, 0.8 * 0.5 + 0.2 * 0.5])
    torch.testing.assert_close(
        alpha(memory=0.8).remember(history, rewards[0]), updated_history(history, rewards[0], 0.8)
    )
    assert MeanRewards().remember(history, rewards[0]).tolist() == pytest.approx([0.3, 0.5])


@given(sizes=SIZES)
def test_the_fairness_index_is_that_of_the_coefficient_of_variation(sizes: tuple[int, int, int]) -> None:
    rewards, _ = draw(sizes)
    columns = rewards.T.tolist()
    each = []
    for column in columns:
        mean = sum(column) / len(column)
        variance = sum((value - mean) ** 2 for value in column) / len(column)
        each.append(1 / (1 + variance / mean**2))
    assert fairness_index(rewards) == pytest.approx(sum(each) / len(each))


def test_equal_and_absent_rewards_are_fair() -> None:
    assert fairness_index(torch.full((3, 4), 0.2)) == pytest.approx(1.0)
    assert fairness_index(torch.zeros(3, 4)) == 1.0
    assert fairness_index(torch.tensor([[1.0], [0.0]])) == 0.5
