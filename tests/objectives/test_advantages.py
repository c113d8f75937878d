"""Rewards and advantages of responses against their definitions, term by term."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedalign.objectives.advantages import gae, group_advantages, kl_adjusted_rewards, whiten
from tests.objectives.sequences import LENGTHS, MASK, S, drawn, garbage

# --------------------------------------------------------------------------------------------------------- rewards


@pytest.mark.parametrize("place", ["last", "token"])
def test_rewards_add_up_to_the_score_less_the_penalty(place: Any) -> None:
    scores, log_probs, reference = drawn(4, seed=1), drawn(4, S, seed=2), drawn(4, S, seed=3)
    found = kl_adjusted_rewards(scores, garbage(log_probs), garbage(reference), MASK, 0.3, place)
    for row, length in enumerate(LENGTHS):
        ratio = (log_probs - reference)[row, :length]
        if not length:
            expected = torch.zeros(S, dtype=torch.float64)
        elif place == "last":
            expected = torch.zeros(S, dtype=torch.float64)
            expected[length - 1] = scores[row] - 0.3 * ratio.sum()
        else:
            expected = torch.cat([-0.3 * ratio, torch.zeros(S - length, dtype=torch.float64)])
            expected[length - 1] += scores[row]
        torch.testing.assert_close(found[row], expected)


@given(st.integers(0, 1000), st.floats(0, 2))
def test_both_places_give_the_same_return(seed: int, beta: float) -> None:
    scores, log_probs, reference = drawn(4, seed=seed), drawn(4, S, seed=seed + 1), drawn(4, S, seed=seed + 2)
    returns = [kl_adjusted_rewards(scores, log_probs, reference, MASK, beta, p).sum(1) for p in ("last", "token")]
    torch.testing.assert_close(*returns)
    # Hence the same advantage of the first token, if every reward counts in full.
    rewards = [kl_adjusted_rewards(scores, log_probs, reference, MASK, beta, p) for p in ("last", "token")]
    first = [gae(r, reference, MASK, 1.0, 1.0)[0][:, 0] for r in rewards]
    torch.testing.assert_close(*first)


# ------------------------------------------------------------------------------------------------------ advantages


def double_sum(rewards: Tensor, values: Tensor, length: int, gamma: float, lam: float) -> Tensor:
    """The oracle: Schulman et al. 2016, Eq. 16 and 11, term by term, of one response."""
    found = torch.zeros(S, dtype=torch.float64)
    for t in range(length):
        for later in range(t, length):
            following = values[later + 1] if later + 1 < length else 0.0
            found[t] += (gamma * lam) ** (later - t) * (rewards[later] + gamma * following - values[later])
    return found


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (0.7, 1.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_gae_is_its_double_sum(gamma: float, lam: float) -> None:
    rewards, values = drawn(4, S), drawn(4, S, seed=1)
    advantages, returns = gae(garbage(rewards), garbage(values), MASK, gamma, lam)
    for row, length in enumerate(LENGTHS):
        expected = double_sum(rewards[row], values[row], length, gamma, lam)
        torch.testing.assert_close(advantages[row], expected)
        torch.testing.assert_close(returns[row, :length], expected[:length] + values[row, :length])
        assert not returns[row, length:].any()


def test_with_everything_counted_the_return_is_the_sum_of_rewards() -> None:
    rewards = drawn(4, S) * MASK
    _, returns = gae(rewards, drawn(4, S, seed=1), MASK, 1.0, 1.0)
    torch.testing.assert_close(returns, rewards.flip(1).cumsum(1).flip(1) * MASK)


def test_group_advantages_are_their_definitions() -> None:
    rewards = drawn(3, 4)
    rewards[1] = 0.1
    rloo, grpo = group_advantages(rewards, "rloo"), group_advantages(rewards, "grpo")
    for row in range(3):
        for place in range(4):
            others = [float(rewards[row, other]) for other in range(4) if other != place]
            assert float(rloo[row, place]) == pytest.approx(float(rewards[row, place]) - sum(others) / 3, abs=1e-12)
    centred = rewards - rewards.mean(1, keepdim=True)
    expected = centred / centred.square().mean(1, keepdim=True).sqrt()
    torch.testing.assert_close(grpo[[0, 2]], expected[[0, 2]])
    assert not grpo[1].any()
    with pytest.raises(ValueError, match="2 or more"):
        group_advantages(rewards[:, :1], "rloo")


def test_equal_rewards_that_miss_their_mean_by_rounding_have_no_advantage() -> None:
    """In float32 the mean of ten times 0.7 is not 0.7; divided by its own size the error would be 1."""
    rewards = torch.full((1, 10), 0.7)
    assert (rewards - rewards.sum(1, keepdim=True) / 10).any()
    assert not group_advantages(rewards, "grpo").any()


@given(st.integers(0, 1000), st.floats(-5, 5), st.floats(0.1, 10))
def test_group_advantages_do_not_know_level_nor_grpo_scale(seed: int, shift: float, scale: float) -> None:
    rewards = drawn(2, 5, seed=seed)
    for kind in ("rloo", "grpo"):
        found = group_advantages(rewards, kind)
        torch.testing.assert_close(group_advantages(rewards + shift, kind), found)
        torch.testing.assert_close(found.sum(1), torch.zeros(2, dtype=torch.float64), atol=1e-9, rtol=0)
        changed = group_advantages(rewards * scale, kind)
        torch.testing.assert_close(changed, found * scale if kind == "rloo" else found)


def test_whitened_advantages_have_unit_spread_over_all_tokens() -> None:
    found = whiten(garbage(3 + 2 * drawn(4, S)), MASK)
    inside = found[MASK.bool()]
    assert float(inside.mean()) == pytest.approx(0, abs=1e-9)
    assert float(inside.square().mean()) == pytest.approx(1, rel=1e-6)
    assert not found[~MASK.bool()].any()
