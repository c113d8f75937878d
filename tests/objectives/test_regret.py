"""Mixtures of policies against multiplicative weights, brute force over the simplex and games with known values."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedalign.objectives.regret import maxmin_weights, minmax_weights, regret_matrix

SEEDS = st.integers(0, 2**32 - 1)


def draw(rows: int, columns: int, seed: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hedge(costs: Tensor, steps: int, step: float) -> tuple[Tensor, float]:
    """Return the average play of optimistic multiplicative weights against a row player who may also choose zeros."""
    game = np.vstack([costs.numpy(), np.zeros((1, costs.shape[1]))])
    rows, columns = (np.full(size, 1.0 / size) for size in game.shape)
    total = np.zeros(game.shape[1])
    before_rows, before_columns = game @ columns, rows @ game
    for _ in range(steps):
        now_rows, now_columns = game @ columns, rows @ game
        rows = rows * np.exp(step * (2 * now_rows - before_rows))
        columns = columns * np.exp(-step * (2 * now_columns - before_columns))
        rows, columns = rows / rows.sum(), columns / columns.sum()
        before_rows, before_columns = now_rows, now_columns
        total += columns
    weights = total / steps
    return torch.from_numpy(weights), float((game @ weights).max())


@pytest.mark.parametrize("types", [2, 3, 5])
def test_the_value_is_that_of_multiplicative_weights(types: int) -> None:
    rewards = draw(types, types, seed=types) + 2 * torch.eye(types)
    regrets = regret_matrix(rewards, torch.ones(types), normalise=False)
    regrets = regrets / regrets.abs().max()
    weights, value = minmax_weights(regrets)
    played, expected = hedge(regrets, 10_000, 0.5)
    assert value > 0.05
    assert value == pytest.approx(expected, abs=1e-3)
    torch.testing.assert_close(weights, played, atol=0.01, rtol=0)


@given(rows=st.integers(1, 5), seed=SEEDS)
def test_no_mixture_on_a_grid_is_better_and_the_value_is_that_of_the_weights(rows: int, seed: int) -> None:
    matrix = draw(rows, 3, seed)
    grid = torch.tensor(
        [(a / 20, b / 20, 1 - (a + b) / 20) for a, b in itertools.product(range(21), repeat=2) if a + b <= 20],
        dtype=torch.float64,
    )
    weights, value = minmax_weights(matrix)
    assert float(weights.sum()) == pytest.approx(1.0)
    assert bool((weights >= 0).all())
    assert value == pytest.approx(max(0.0, float((matrix @ weights).max())), abs=1e-7)
    assert value <= float((matrix @ grid.T).amax(0).clamp(min=0).min()) + 1e-7
    weights, value = maxmin_weights(matrix)
    assert value == pytest.approx(float((matrix @ weights).min()), abs=1e-7)
    assert value >= float((matrix @ grid.T).amin(0).max()) - 1e-7


@given(types=st.integers(1, 6), seed=SEEDS, data=st.data())
def test_permuting_types_permutes_the_weights(types: int, seed: int, data: st.DataObject) -> None:
    # Rounded, so that several mixtures are often best.
    rewards = draw(types, types, seed).round() + torch.eye(types)
    order = data.draw(st.permutations(range(types)))
    for solve in (minmax_weights, maxmin_weights):
        weights, value = solve(regret_matrix(rewards, torch.ones(types), normalise=False))
        moved, again = solve(regret_matrix(rewards[order][:, order], torch.ones(types), normalise=False))
        assert again == pytest.approx(value, abs=1e-7)
        torch.testing.assert_close(moved, weights[order], atol=1e-5, rtol=0)


@given(rows=st.integers(1, 5), columns=st.integers(1, 5), seed=SEEDS)
def test_regret_below_zero_counts_as_none(rows: int, columns: int, seed: int) -> None:
    matrix = draw(rows, columns, seed)
    _, without = maxmin_weights(-matrix)
    _, value = minmax_weights(matrix)
    assert value == pytest.approx(max(0.0, -without), abs=1e-7)


def test_policies_that_are_the_same_share_evenly_and_nobody_regrets() -> None:
    rewards = torch.tensor([[2.0, 2.0, 2.0], [7.0, 7.0, 7.0], [0.0, 0.0, 0.0]])
    weights, value = minmax_weights(regret_matrix(rewards, torch.ones(3), normalise=False))
    assert value == 0.0
    assert weights.tolist() == pytest.approx([1 / 3] * 3)


def test_two_opposite_types_are_served_alike() -> None:
    weights, value = minmax_weights(regret_matrix(torch.tensor([[4.0, -2.0], [-2.0, 4.0]]), torch.ones(2), False))
    assert weights.tolist() == pytest.approx([0.5, 0.5])
    assert value == pytest.approx(3.0)


def test_a_policy_that_is_worse_for_everybody_is_not_used() -> None:
    regrets = torch.tensor([[0.0, 1.0, 0.2, 1.1], [1.0, 0.0, 1.2, 0.2], [2.0, 2.0, 2.1, 2.2]])
    for weights, _ in (minmax_weights(regrets), maxmin_weights(-regrets)):
        assert float(weights[2:].abs().max()) < 1e-7


def test_the_size_of_rewards_does_not_matter() -> None:
    matrix = draw(4, 4, seed=3) + 1
    weights, value = minmax_weights(matrix)
    for scale in (1e-6, 1e6):
        scaled, scaled_value = minmax_weights(matrix * scale)
        torch.testing.assert_close(scaled, weights, atol=1e-6, rtol=0)
        assert scaled_value == pytest.approx(value * scale, rel=1e-6)


def test_regrets_are_weighted_and_shares_of_what_the_own_policy_gives() -> None:
    rewards, weights = torch.tensor([[4.0, 1.0, 4.0], [5.0, 2.0, 0.0], [1.0, 1.0, -1.0]]), torch.tensor([1.0, 2.0, 4.0])
    plain = regret_matrix(rewards, weights, normalise=False)
    assert plain.tolist() == [[0.0, 3.0, 0.0], [-6.0, 0.0, 4.0], [-8.0, -8.0, 0.0]]
    # The third type's own policy gives it less than nothing.
    shares = regret_matrix(rewards, weights, normalise=True)
    assert shares.tolist() == [[0.0, 0.75, 0.0], [-3.0, 0.0, 2.0], [0.0, 0.0, 0.0]]


def test_a_type_that_counts_more_moves_the_mixture_to_its_policy() -> None:
    rewards = torch.tensor([[4.0, -2.0], [-2.0, 4.0]])
    weights, _ = minmax_weights(regret_matrix(rewards, torch.tensor([3.0, 1.0]), normalise=False))
    assert weights.tolist() == pytest.approx([0.75, 0.25])
