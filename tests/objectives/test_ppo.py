"""PPO's losses against autograd on plain loops, and sequences that do not see each other."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedalign.objectives.advantages import gae, group_advantages, kl_adjusted_rewards, whiten
from fedalign.objectives.dpo import sequence_log_probability
from fedalign.objectives.ppo import clipped_policy_loss, token_log_probabilities, value_loss
from tests.objectives.sequences import LENGTHS, MASK, S, drawn, garbage

# --------------------------------------------------------------------------------------------------- probabilities


def test_token_log_probabilities_are_those_of_the_next_token() -> None:
    logits, tokens = drawn(2, 4, 5), torch.tensor([[0, 3, 1, 4], [2, 2, 0, 1]])
    mask = torch.tensor([[1, 0, 1, 1], [0, 1, 1, 0]])
    found = token_log_probabilities(logits, tokens, mask)
    for row in range(2):
        for place in range(3):
            expected = math.log(float(logits[row, place].softmax(0)[tokens[row, place + 1]])) * mask[row, place + 1]
            assert float(found[row, place]) == pytest.approx(float(expected), abs=1e-6)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.sum(1), sequence_log_probability(logits, tokens, mask))


def test_impossible_padding_leaves_no_trace() -> None:
    logits = drawn(1, 3, 4)
    logits[0, 1, 2] = -math.inf
    logits.requires_grad_()
    found = token_log_probabilities(logits, torch.tensor([[0, 1, 2]]), torch.tensor([[1, 1, 0]]))
    assert found.isfinite().all()
    assert torch.autograd.grad(found.sum(), logits)[0].isfinite().all()


# ---------------------------------------------------------------------------------------------------------- losses


def plain_policy_loss(new: Tensor, old: Tensor, gains: Tensor, length: int, clip: float) -> Tensor:
    """The oracle: one token after the other, with branches instead of minima."""
    total = 0 * new.sum()  # part of the graph, even if all is clipped
    for t in range(length):
        ratio, gain = (new[t] - old[t]).exp(), gains[t]
        stopped = ratio > 1 + clip if gain > 0 else ratio < 1 - clip
        bound = 1 + clip if gain > 0 else 1 - clip
        total = total - (bound * gain if stopped else ratio * gain)
    return total / length


def plain_value_loss(new: Tensor, old: Tensor, target: Tensor, length: int, clip: float | None) -> Tensor:
    total = 0 * new.sum()  # part of the graph, even if all is clipped
    for t in range(length):
        error = (new[t] - target[t]) ** 2
        if clip is not None and abs(float((new[t] - old[t]).detach())) > clip:
            held = (old[t] + math.copysign(clip, float((new[t] - old[t]).detach())) - target[t]) ** 2
            error = held if held > error else error
        total = total + error / 2
    return total / length


def with_gradient(loss: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    return loss, torch.autograd.grad(loss.sum(), at)[0]


@pytest.mark.parametrize("clip", [0.05, 0.2, 10.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_policy_loss_is_the_plain_one(clip: float, seed: int) -> None:
    new = (0.3 * drawn(4, S, seed=seed)).requires_grad_()
    old, gains = 0.3 * drawn(4, S, seed=seed + 10), drawn(4, S, seed=seed + 20)
    loss, gradient = with_gradient(clipped_policy_loss(new, garbage(old), garbage(gains), MASK, clip), new)
    assert loss[3] == 0
    assert not gradient[3].any()
    for row, length in enumerate(LENGTHS[:3]):
        expected = with_gradient(plain_policy_loss(new[row], old[row], gains[row], length, clip), new)
        torch.testing.assert_close(loss[row], expected[0])
        torch.testing.assert_close(gradient[row], expected[1][row])
    if clip == 0.05:
        assert (gradient[MASK.bool()] == 0).any(), "nothing was clipped"


@pytest.mark.parametrize("clip", [None, 0.2, 10.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_value_loss_is_the_plain_one(clip: float | None, seed: int) -> None:
    new = drawn(4, S, seed=seed).requires_grad_()
    old, target = drawn(4, S, seed=seed + 10), drawn(4, S, seed=seed + 20)
    loss, gradient = with_gradient(value_loss(new, garbage(old), garbage(target), MASK, clip), new)
    assert loss[3] == 0
    for row, length in enumerate(LENGTHS[:3]):
        expected = with_gradient(plain_value_loss(new[row], old[row], target[row], length, clip), new)
        torch.testing.assert_close(loss[row], expected[0])
        torch.testing.assert_close(gradient[row], expected[1][row])


def test_before_the_first_step_the_policy_loss_follows_the_policy_gradient() -> None:
    """At ratio 1 the gradient is that of -A log pi, whatever the clip."""
    new, gains = drawn(4, S).requires_grad_(), drawn(4, S, seed=1)
    _, gradient = with_gradient(clipped_policy_loss(new, new.detach().clone(), gains, MASK, 0.2), new)
    expected = -gains * MASK / MASK.sum(1, keepdim=True).clamp(min=1)
    torch.testing.assert_close(gradient, expected)


def test_values_and_advantages_are_not_trained_through() -> None:
    new, other = drawn(4, S).requires_grad_(), drawn(4, S, seed=1).requires_grad_()
    for loss in (clipped_policy_loss(new, other, other, MASK, 0.2), value_loss(new, other, other, MASK, 0.2)):
        (found,) = torch.autograd.grad(loss.sum(), other, allow_unused=True)
        assert found is None
    rewards = kl_adjusted_rewards(other[:, 0], new, other, MASK, 0.1, "last")
    assert not any(t.requires_grad for t in (rewards, *gae(rewards, new, MASK, 1.0, 0.95)))


# --------------------------------------------------------------------------------------- sequences do not see others


def pipeline(mask: Tensor, seed_of: list[int]) -> dict[str, tuple[Tensor, Tensor | None]]:
    """All that a batch of sequences goes through, with what each sequence holds decided by its own seed."""

    def rows(which: int, *shape: int) -> Tensor:
        return torch.stack([drawn(*shape, seed=100 * seed + which) for seed in seed_of]).float()

    logits = rows(0, S + 1, 7).requires_grad_()
    tokens = torch.stack([torch.randint(7, (S + 1,), generator=torch.Generator().manual_seed(s)) for s in seed_of])
    new = token_log_probabilities(logits, tokens, torch.cat([torch.zeros_like(mask[:, :1]), mask], 1))
    old, reference = new.detach() + 0.1 * rows(1, S), new.detach() + 0.1 * rows(2, S)
    values = rows(3, S).requires_grad_()
    rewards = kl_adjusted_rewards(rows(4), old, reference, mask, 0.2, "last")
    advantages, returns = gae(rewards, values, mask, 0.99, 0.95)
    policy = clipped_policy_loss(new, old, advantages, mask, 0.2)
    value = value_loss(values, values.detach() + rows(5, S), returns, mask, 0.2)
    white = clipped_policy_loss(new, old, whiten(advantages, mask), mask, 0.2)
    gradients = {
        name: torch.autograd.grad(loss.sum(), at, retain_graph=True)[0]
        for name, loss, at in (("policy", policy, logits), ("value", value, values), ("white", white, logits))
    }
    return {
        "policy": (policy, gradients["policy"]),
        "value": (value, gradients["value"]),
        "rewards": (rewards, None),
        "rloo": (group_advantages(rewards, "rloo"), None),
        "grpo": (group_advantages(rewards, "grpo"), None),
        "white": (white, gradients["white"]),
    }


@given(st.integers(0, 10_000), st.lists(st.integers(0, S), min_size=2, max_size=2))
def test_a_sequence_is_the_same_to_the_bit_whatever_the_others_hold(seed: int, lengths: list[int]) -> None:
    def batch(length: int) -> Tensor:
        return torch.tensor([[1] * n + [0] * (S - n) for n in (4, length, 2)])

    first = pipeline(batch(lengths[0]), [1, seed, 2])
    second = pipeline(batch(lengths[1]), [1, seed + 1, 2])
    for name in ("policy", "value", "rewards", "rloo", "grpo"):
        for before, after in zip(first[name], second[name], strict=True):
            if before is not None and after is not None:
                assert torch.equal(before[[0, 2]], after[[0, 2]]), name


def test_whitening_is_what_makes_sequences_depend_on_each_other() -> None:
    first, second = pipeline(MASK[:3], [1, 2, 3]), pipeline(MASK[:3], [1, 4, 3])
    assert torch.equal(first["policy"][1][0], second["policy"][1][0])  # type: ignore[index]
    moved = (first["white"][1][0] - second["white"][1][0]).abs().max()  # type: ignore[index]
    assert moved > 1e-3
