"""Mixtures of next-token distributions against plain float64 forms, their gradients, and truncation."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedalign.models.mixture import (
    expert_log_weights,
    linear_log_probability,
    log_linear_log_probability,
    truncate,
)

seeds, experts, words = st.integers(0, 10**6), st.integers(1, 5), st.integers(2, 12)
TEXTS = 4


def case(seed: int, n: int, vocabulary: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores (4, n), who is active (4, n), log-probabilities (4, n, V) and tokens (4,)."""
    generator = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(TEXTS, n, generator=generator, dtype=torch.float64)
    active = torch.rand(TEXTS, n, generator=generator) < 0.6
    active[torch.arange(TEXTS), torch.randint(n, (TEXTS,), generator=generator)] = True
    logits = 3 * torch.randn(TEXTS, n, vocabulary, generator=generator, dtype=torch.float64)
    return scores, active, logits.log_softmax(2), torch.randint(vocabulary, (TEXTS,), generator=generator)


def at(log_probs: Tensor, tokens: Tensor) -> Tensor:
    """Return what each expert finds of the tokens, shape (4, n)."""
    return torch.stack([log_probs[row, :, token] for row, token in enumerate(tokens)])


def plain_weights(scores: Tensor, active: Tensor) -> Tensor:
    """The oracle: exponentials of active scores over their sum."""
    raised = torch.where(active, scores.exp(), torch.zeros_like(scores))
    return raised / raised.sum(1, keepdim=True)


def one_hot(chosen: int, n: int) -> Tensor:
    return torch.full((TEXTS, n), -math.inf, dtype=torch.float64).index_fill(1, torch.tensor(chosen), 0.0)


# ---------------------------------------------------------------------------------------------------------- weights


@given(seeds, experts)
def test_weights_are_a_softmax_over_active_experts(seed: int, n: int) -> None:
    scores, active, _, _ = case(seed, n, 2)
    found = expert_log_weights(scores, active)
    torch.testing.assert_close(found.exp(), plain_weights(scores, active))
    assert torch.equal(found == -math.inf, ~active)
    torch.testing.assert_close(expert_log_weights(scores + 7, active), found)


@given(seeds, experts)
def test_experts_that_are_not_active_get_no_gradient(seed: int, n: int) -> None:
    scores, active, log_probs, tokens = case(seed, n, 5)
    for log_linear in (False, True):
        moved = scores.clone().requires_grad_()
        weights = expert_log_weights(moved, active)
        if log_linear:
            found = log_linear_log_probability(weights, log_probs, tokens)
        else:
            found = linear_log_probability(weights, at(log_probs, tokens))
        (gradient,) = torch.autograd.grad(found.sum(), moved)
        assert gradient.isfinite().all()
        assert not gradient[~active].any()


# ----------------------------------------------------------------------------------------------------------- linear


@given(seeds, experts, words)
def test_a_number_an_expert_gives_the_mixture_over_the_vocabulary(seed: int, n: int, vocabulary: int) -> None:
    scores, active, log_probs, tokens = case(seed, n, vocabulary)
    found = linear_log_probability(expert_log_weights(scores, active), at(log_probs, tokens))
    mixture = (plain_weights(scores, active)[:, :, None] * log_probs.exp()).sum(1)
    torch.testing.assert_close(mixture.sum(1), torch.ones(TEXTS, dtype=torch.float64))
    torch.testing.assert_close(found, mixture[torch.arange(TEXTS), tokens].log(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("chosen", range(3))
def test_all_weight_on_one_expert_is_that_expert(chosen: int) -> None:
    _, _, log_probs, tokens = case(0, 3, 6)
    spoken = at(log_probs, tokens)
    assert torch.equal(linear_log_probability(one_hot(chosen, 3), spoken), spoken[:, chosen])
    merged = log_linear_log_probability(one_hot(chosen, 3), log_probs, tokens)
    torch.testing.assert_close(merged, spoken[:, chosen], atol=1e-12, rtol=0)


@given(seeds, experts)
def test_experts_that_agree_move_no_weight(seed: int, n: int) -> None:
    scores, active, log_probs, tokens = case(seed, n, 5)
    same = at(log_probs, tokens)[:, :1].expand(-1, n)
    moved = scores.clone().requires_grad_()
    found = linear_log_probability(expert_log_weights(moved, active), same)
    (gradient,) = torch.autograd.grad(found.sum(), moved)
    assert gradient.abs().max() < 1e-7


@given(seeds, experts)
def test_the_gradient_is_the_published_one(seed: int, n: int) -> None:
    scores, active, log_probs, tokens = case(seed, n, 5)
    spoken = at(log_probs, tokens)
    alpha = plain_weights(scores, active).requires_grad_()
    mixture = (alpha * spoken.exp()).sum(1)
    (plain,) = torch.autograd.grad(mixture.log().sum(), alpha)
    formula = spoken.exp() / mixture.detach()[:, None]
    torch.testing.assert_close(plain, formula)

    # Ours is taken in the logarithm of the weights: d log pi / d log alpha_i = alpha_i d log pi / d alpha_i.
    logs = expert_log_weights(scores, active).requires_grad_()
    (ours,) = torch.autograd.grad(linear_log_probability(logs, spoken).sum(), logs)
    torch.testing.assert_close(ours, alpha.detach() * formula)

    # And in the scores, through the softmax: alpha_i (formula_i - 1).
    moved = scores.clone().requires_grad_()
    found = linear_log_probability(expert_log_weights(moved, active), spoken)
    (ours,) = torch.autograd.grad(found.sum(), moved)
    torch.testing.assert_close(ours, alpha.detach() * (formula - 1))


# ------------------------------------------------------------------------------------------------------- log-linear


@given(seeds, experts, words)
def test_log_linear_is_the_normalised_product(seed: int, n: int, vocabulary: int) -> None:
    scores, active, log_probs, _ = case(seed, n, vocabulary)
    alpha, weights = plain_weights(scores, active), expert_log_weights(scores, active)
    every = [
        log_linear_log_probability(weights, log_probs, torch.full((TEXTS,), token)).exp() for token in range(vocabulary)
    ]
    torch.testing.assert_close(torch.stack(every, 1).sum(1), torch.ones(TEXTS, dtype=torch.float64))
    for row in range(TEXTS):
        products = [
            math.prod(float(log_probs[row, i, token].exp()) ** float(alpha[row, i]) for i in range(n))
            for token in range(vocabulary)
        ]
        for token in range(vocabulary):
            assert float(every[token][row]) == pytest.approx(products[token] / sum(products), abs=1e-9)


def test_log_linear_can_be_sharper_than_every_expert() -> None:
    # Each expert likes the last token and one of its own; both like only the last.
    log_probs = torch.tensor([[0.45, 0.05, 0.5], [0.05, 0.45, 0.5]]).log()[None]
    weights = torch.tensor([[0.5, 0.5]]).log()
    token = torch.tensor([2])
    assert float(linear_log_probability(weights, log_probs[:, :, 2]).exp()) == pytest.approx(0.5)
    assert float(log_linear_log_probability(weights, log_probs, token).exp()) > 0.6


# ------------------------------------------------------------------------------------------------------- truncation


@given(seeds, words, st.integers(1, 12), st.sampled_from([1e-6, 1e-3, 0.2]))
def test_what_is_left_is_a_distribution(seed: int, vocabulary: int, top: int, floor: float) -> None:
    _, _, log_probs, _ = case(seed, 2, vocabulary)
    found = truncate(log_probs, top, floor)
    assert found.shape == log_probs.shape
    assert found.isfinite().all()
    torch.testing.assert_close(found.exp().sum(2), torch.ones(TEXTS, 2, dtype=torch.float64))
    kept = log_probs.argsort(2, descending=True)[..., :top]
    inside = found.gather(2, kept)
    # Those that are known keep their order and their ratios; the others share the floor.
    assert (inside.diff(dim=2) <= 1e-12).all()
    share = (inside.exp() - floor / vocabulary) / (1 - floor)
    torch.testing.assert_close(share, log_probs.gather(2, kept).softmax(2))
    others = torch.ones_like(found, dtype=torch.bool).scatter(2, kept, False)
    torch.testing.assert_close(
        found[others], torch.full_like(found[others], math.log(floor / vocabulary)), atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("top", [6, 100])
def test_all_tokens_and_a_tiny_floor_change_nothing(top: int) -> None:
    _, _, log_probs, _ = case(1, 3, 6)
    torch.testing.assert_close(truncate(log_probs, top, 1e-15), log_probs)


def test_one_known_token_has_all_but_the_floor() -> None:
    found = truncate(torch.tensor([[0.5, 0.3, 0.2]]).log(), 1, 0.3).exp()
    torch.testing.assert_close(found, torch.tensor([[0.8, 0.1, 0.1]]))


def test_impossible_tokens_and_ties_stay_finite() -> None:
    impossible = torch.tensor([[-math.inf, 0.0, -math.inf, -math.inf]])
    for top in (1, 2, 4):
        found = truncate(impossible, top, 0.04).exp()
        torch.testing.assert_close(found, torch.tensor([[0.01, 0.97, 0.01, 0.01]]))
    tied = truncate(torch.zeros(1, 4).log_softmax(1), 2, 0.04).exp()
    torch.testing.assert_close(tied.sort(1).values, torch.tensor([[0.01, 0.01, 0.49, 0.49]]))
