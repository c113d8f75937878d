"""The Jensen-Shannon distance against scipy, and refusal of what has no distance."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from fedalign.metrics.alignment import jensen_shannon_distance


def distributions(sizes: list[int], generator: np.random.Generator) -> list[np.ndarray]:
    """Return one distribution a question, with zeros among the shares."""
    drawn = []
    for size in sizes:
        weights = generator.random(size) * (generator.random(size) < 0.7)
        weights[generator.integers(size)] += 0.5
        drawn.append(weights / weights.sum())
    return drawn


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6), seed=st.integers(0, 10_000))
def test_it_is_scipy_s_distance_with_the_natural_logarithm(sizes: list[int], seed: int) -> None:
    generator = np.random.default_rng(seed)
    p, q = distributions(sizes, generator), distributions(sizes, generator)
    segments = torch.tensor(np.repeat(np.arange(len(sizes)), sizes))
    order = torch.tensor(generator.permutation(sum(sizes)))
    got = jensen_shannon_distance(
        torch.tensor(np.concatenate(p))[order], torch.tensor(np.concatenate(q))[order], segments[order], len(sizes)
    )
    # scipy returns NaN where rounding leaves a divergence just below zero.
    expected = [np.nan_to_num(jensenshannon(a, b)) for a, b in zip(p, q, strict=True)]
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-7)
    assert bool((got >= 0).all())
    assert bool((got <= math.sqrt(math.log(2)) + 1e-12).all())


def one(*shares: float) -> torch.Tensor:
    return torch.tensor(shares)


ONE_QUESTION = torch.zeros(2, dtype=torch.int64)


def test_equal_answers_are_at_distance_zero_in_any_precision() -> None:
    for seed in range(20):
        shares = torch.softmax(torch.randn(6, generator=torch.Generator().manual_seed(seed)), 0)
        distance = jensen_shannon_distance(shares, shares, torch.zeros(6, dtype=torch.int64), 1)
        assert distance.tolist() == [0.0]


def test_nearly_equal_answers_have_a_distance_although_their_divergence_is_rounded_away() -> None:
    generator = np.random.default_rng(0)
    p = generator.dirichlet(np.ones(8), size=300)
    q = p * (1 + 1e-9 * generator.standard_normal(p.shape))
    segments = torch.arange(300).repeat_interleave(8)
    distance = jensen_shannon_distance(torch.tensor(p.ravel()), torch.tensor(q.ravel()), segments, 300)
    assert bool((distance >= 0).all())
    assert float(distance.max()) < 1e-7


def test_answers_without_overlap_are_as_far_as_can_be() -> None:
    distance = jensen_shannon_distance(one(1, 0), one(0, 1), ONE_QUESTION, 1)
    assert float(distance) == pytest.approx(math.sqrt(math.log(2)))


def test_the_distance_is_symmetric() -> None:
    p, q = one(0.9, 0.1), one(0.3, 0.7)
    there = jensen_shannon_distance(p, q, ONE_QUESTION, 1)
    assert torch.equal(there, jensen_shannon_distance(q, p, ONE_QUESTION, 1))


@pytest.mark.parametrize("bad", [(math.nan, 0.5), (math.inf, 0.0), (1.2, -0.2), (0.5, 0.4), (0.0, 0.0)])
def test_what_is_no_distribution_has_no_score(bad: tuple[float, float]) -> None:
    good = one(0.5, 0.5)
    with pytest.raises(ValueError, match="predicted shares must"):
        jensen_shannon_distance(one(*bad), good, ONE_QUESTION, 1)
    with pytest.raises(ValueError, match="actual shares must"):
        jensen_shannon_distance(good, one(*bad), ONE_QUESTION, 1)


def test_every_question_must_sum_to_one_by_itself() -> None:
    segments = torch.tensor([0, 0, 1, 1])
    lopsided = one(0.9, 0.5, 0.1, 0.5)
    with pytest.raises(ValueError, match="sum to 1 within each question"):
        jensen_shannon_distance(lopsided, torch.full((4,), 0.5), segments, 2)
