"""The GPO objective against torch.distributions and a loop over questions."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedalign.objectives.gpo_nll import gpo_nll, segment_log_softmax

SIZES = st.lists(st.integers(1, 7), min_size=1, max_size=6)
SEEDS = st.integers(0, 10_000)


def layout(sizes: list[int], seed: int) -> tuple[Tensor, Tensor]:
    """Return the question of every point and the order of the points: questions need not lie side by side."""
    segments = torch.cat([torch.full((size,), place) for place, size in enumerate(sizes)])
    order = torch.randperm(len(segments), generator=torch.Generator().manual_seed(seed))
    return segments[order], order


def draws(seed: int, points: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(points, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(sizes=SIZES, seed=SEEDS, scale=st.sampled_from([0.1, 1.0, 300.0]))
def test_softmax_within_each_question(sizes: list[int], seed: int, scale: float) -> None:
    segments, _ = layout(sizes, seed)
    logits = draws(seed, len(segments), scale)
    got = segment_log_softmax(logits, segments, len(sizes))
    for question in range(len(sizes)):
        own = segments == question
        torch.testing.assert_close(got[own], torch.log_softmax(logits[own], 0))


def test_softmax_of_huge_logits_stays_finite() -> None:
    got = segment_log_softmax(torch.tensor([1e30, 0.0, -1e30]), torch.zeros(3, dtype=torch.int64), 1)
    assert got.tolist()[0] == 0.0
    assert not bool(torch.isnan(got).any())


@given(sizes=SIZES, seed=SEEDS)
def test_the_gradient_of_the_softmax_is_pytorch_s(sizes: list[int], seed: int) -> None:
    segments, _ = layout(sizes, seed)
    logits, weights = draws(seed, len(segments)).requires_grad_(), draws(seed + 1, len(segments))
    (got,) = torch.autograd.grad((weights * segment_log_softmax(logits, segments, len(sizes))).sum(), logits)
    by_question = [
        (weights[segments == q] * torch.log_softmax(logits[segments == q], 0)).sum() for q in range(len(sizes))
    ]
    (expected,) = torch.autograd.grad(torch.stack(by_question).sum(), logits)
    torch.testing.assert_close(got, expected)


@given(sizes=SIZES, seed=SEEDS)
def test_likelihood_is_gaussian_around_the_softmax(sizes: list[int], seed: int) -> None:
    segments, _ = layout(sizes, seed)
    mean, log_std, shares = (draws(seed + k, len(segments)) for k in range(3))
    got = gpo_nll(mean, log_std, shares, segments, len(sizes))
    for question in range(len(sizes)):
        own = segments == question
        normal = torch.distributions.Normal(torch.softmax(mean[own], 0), log_std[own].exp())
        torch.testing.assert_close(got[own], -normal.log_prob(shares[own]))


def test_a_confident_right_answer_has_negative_loss() -> None:
    segments = torch.zeros(2, dtype=torch.int64)
    loss = gpo_nll(torch.zeros(2), torch.full((2,), -3.0), torch.tensor([0.5, 0.5]), segments, 1)
    assert bool((loss < 0).all())


@given(sizes=SIZES, seed=SEEDS, shift=st.floats(-5, 5))
def test_only_differences_of_logits_within_a_question_count(sizes: list[int], seed: int, shift: float) -> None:
    segments, _ = layout(sizes, seed)
    mean, log_std, shares = (draws(seed + k, len(segments)) for k in range(3))
    offsets = shift * torch.arange(len(sizes), dtype=torch.float64)
    moved = gpo_nll(mean + offsets[segments], log_std, shares, segments, len(sizes))
    torch.testing.assert_close(moved, gpo_nll(mean, log_std, shares, segments, len(sizes)), rtol=1e-7, atol=1e-9)
