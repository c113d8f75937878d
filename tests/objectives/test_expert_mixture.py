"""What moves the weights of merged experts: a reward that is a probability, and REBEL's regression."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedalign.objectives.expert_mixture import bradley_terry_reward, rebel_loss
from tests.objectives.sequences import drawn

seeds, etas = st.integers(0, 10**6), st.sampled_from([0.1, 1.0, 20.0])


@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4), st.sampled_from([0.01, 1.0, 30.0]))
def test_the_reward_is_the_probability_of_winning(reward: float, reference: float, scale: float) -> None:
    first, second = torch.tensor(reward, dtype=torch.float64), torch.tensor(reference, dtype=torch.float64)
    found = float(bradley_terry_reward(first, second, scale))
    assert 0 <= found <= 1
    assert found + float(bradley_terry_reward(second, first, scale)) == pytest.approx(1.0)
    if abs(scale * (reward - reference)) < 30:
        odds = math.exp(scale * (reward - reference))
        assert found == pytest.approx(odds / (1 + odds))
    if reward == reference:
        assert found == 0.5


@given(seeds, etas)
def test_rebel_is_the_squared_miss(seed: int, eta: float) -> None:
    new, old, rewards = (drawn(5, 2, seed=seed + part) for part in range(3))
    found = rebel_loss(new, old, rewards, eta)
    for row in range(5):
        ratio = [float(new[row, side] - old[row, side]) for side in range(2)]
        miss = ratio[0] - ratio[1] - eta * float(rewards[row, 0] - rewards[row, 1])
        assert float(found[row]) == pytest.approx(miss**2)
    torch.testing.assert_close(rebel_loss(new.flip(1), old.flip(1), rewards.flip(1), eta), found)


@given(seeds, etas)
def test_rebel_is_content_when_ratios_follow_rewards(seed: int, eta: float) -> None:
    old, rewards, shift = drawn(5, 2, seed=seed), drawn(5, 2, seed=seed + 1), drawn(5, 1, seed=seed + 2)
    # What both responses gain alike is the partition function, which pairs do not see.
    new = (old + eta * rewards + shift).requires_grad_()
    found = rebel_loss(new, old, rewards, eta)
    torch.testing.assert_close(found, torch.zeros(5, dtype=torch.float64), atol=1e-12, rtol=0)
    assert torch.autograd.grad(found.sum(), new)[0].abs().max() < 1e-6


def test_a_step_favours_the_better_response() -> None:
    old = drawn(4, 2)
    rewards = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.9, 0.1]], dtype=torch.float64)
    new, before = old.clone().requires_grad_(), old.clone().requires_grad_()
    loss = rebel_loss(new, before, rewards, 2.0).sum()
    (gradient,) = torch.autograd.grad(loss, new, retain_graph=True)
    wanted = -4.0 * (rewards[:, 0] - rewards[:, 1])
    torch.testing.assert_close(gradient, torch.stack([wanted, -wanted], 1))
    assert torch.autograd.grad(loss, before, allow_unused=True)[0] is None
