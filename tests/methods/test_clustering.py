"""Balanced clusters against all balanced assignments, and labels that last against all permutations."""

from __future__ import annotations

import itertools
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedalign.methods.clustering import balanced_kmeans, match


@pytest.fixture(autouse=True)
def quiet():
    """Equal points must not make scikit-learn complain on a user's terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def cost(points: Tensor, labels: Tensor, centres: Tensor) -> float:
    return float((points - centres[labels]).square().sum())


def inertia(points: Tensor, labels: Tensor, k: int) -> float:
    return cost(points, labels, torch.stack([points[labels == cluster].mean(0) for cluster in range(k)]))


def balanced(count: int, k: int) -> list[Tensor]:
    """Return every assignment whose sizes differ by at most one."""
    low, high = count // k, -(-count // k)
    return [
        torch.tensor(labels)
        for labels in itertools.product(range(k), repeat=count)
        if all(low <= labels.count(cluster) <= high for cluster in range(k))
    ]


SMALL = st.tuples(st.integers(2, 7), st.integers(1, 3), st.integers(0, 10_000)).filter(
    lambda drawn: drawn[1] <= drawn[0]
)


@given(drawn=SMALL)
@settings(max_examples=40, deadline=None)
def test_the_result_is_the_best_balanced_assignment_to_its_own_centres(drawn: tuple[int, int, int]) -> None:
    count, k, seed = drawn
    points = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = balanced_kmeans(points, k, seed, iterations=100)
    every = balanced(count, k)
    best = min(cost(points, labels, found.centres) for labels in every)
    assert cost(points, found.labels, found.centres) == pytest.approx(best)
    for cluster in range(k):
        torch.testing.assert_close(found.centres[cluster], points[found.labels == cluster].mean(0))


@pytest.mark.parametrize(("count", "k"), [(6, 2), (7, 2), (7, 3), (8, 3)])
def test_clusters_that_are_apart_are_the_best_of_all(count: int, k: int) -> None:
    generator = torch.Generator().manual_seed(count)
    corners = 10 * torch.eye(3, dtype=torch.float64)[:k]
    points = corners[torch.arange(count) % k] + torch.randn(count, 3, generator=generator, dtype=torch.float64)
    found = balanced_kmeans(points, k, 0, iterations=100)
    best = min(inertia(points, labels, k) for labels in balanced(count, k))
    assert inertia(points, found.labels, k) == pytest.approx(best)


@given(count=st.integers(1, 40), k=st.integers(1, 6), different=st.integers(1, 40), seed=st.integers(0, 2**63 - 1))
@settings(max_examples=50, deadline=None)
def test_sizes_differ_by_at_most_one_whatever_the_points(count: int, k: int, different: int, seed: int) -> None:
    k = min(k, count)
    points = torch.randn(different, 3, generator=torch.Generator().manual_seed(seed))[torch.arange(count) % different]
    found = balanced_kmeans(points, k, seed, iterations=20)
    sizes = Counter(found.labels.tolist())
    assert set(sizes) == set(range(k)) and max(sizes.values()) - min(sizes.values()) <= 1
    assert found.labels.dtype == torch.int64 and found.centres.dtype == points.dtype
    assert bool(torch.isfinite(found.centres).all())


@given(order=st.permutations(range(11)), seed=st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_the_order_of_points_does_not_matter(order: list[int], seed: int) -> None:
    points = torch.randn(11, 2, generator=torch.Generator().manual_seed(seed))
    found, again = balanced_kmeans(points, 3, seed, 50), balanced_kmeans(points[order], 3, seed, 50)
    assert torch.equal(again.labels, found.labels[order])
    torch.testing.assert_close(again.centres, found.centres)


def test_plain_clusters_of_unequal_size_are_evened_out() -> None:
    points = torch.tensor([[0.0], [0.1], [0.2], [0.3], [4.0], [9.0]])
    found = balanced_kmeans(points, 2, 0, iterations=50)
    # k-means alone would part five from one.
    parts = {frozenset(np.flatnonzero(found.labels == cluster).tolist()) for cluster in range(2)}
    assert parts == {frozenset({0, 1, 2}), frozenset({3, 4, 5})}


def test_more_iterations_are_never_worse() -> None:
    points = torch.randn(30, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64).exp()
    found = [inertia(points, balanced_kmeans(points, 4, 0, iterations).labels, 4) for iterations in (1, 2, 3, 50)]
    assert found == sorted(found, reverse=True) and found[-1] < found[0]


@pytest.mark.parametrize("k", [0, 4])
def test_clusters_need_a_point_each(k: int) -> None:
    with pytest.raises(ValueError, match=f"{k} clusters of 3 points"):
        balanced_kmeans(torch.zeros(3, 2), k, 0, 10)


@given(k=st.integers(1, 5), seed=st.integers(0, 1000))
def test_the_match_is_the_best_permutation(k: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    centres, anchors = torch.randn(2, k, 3, generator=generator, dtype=torch.float64)
    chosen = match(centres, anchors)
    a, b = centres - centres.mean(0), anchors - anchors.mean(0)
    best = max(sum(float(a[i] @ b[j]) for i, j in enumerate(order)) for order in itertools.permutations(range(k)))
    assert sorted(chosen.tolist()) == list(range(k))
    assert float((a * b[chosen]).sum()) == pytest.approx(best)


@given(order=st.permutations(range(5)), seed=st.integers(0, 1000), shift=st.floats(-100, 100))
def test_centres_that_were_renumbered_and_moved_get_their_labels_back(
    order: list[int], seed: int, shift: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    anchors = 5 * torch.linalg.qr(torch.randn(6, 5, generator=generator, dtype=torch.float64)).Q.T
    centres = anchors[order] + shift + 0.1 * torch.randn(5, 6, generator=generator, dtype=torch.float64)
    assert match(centres, anchors).tolist() == order


def test_labels_keep_their_meaning_over_rounds() -> None:
    generator = torch.Generator().manual_seed(2)
    truth = torch.arange(12) % 3
    points = 8 * torch.eye(3)[truth] + torch.randn(12, 3, generator=generator)
    first = balanced_kmeans(points, 3, 0, 50)
    moved = points @ torch.linalg.qr(torch.randn(3, 3, generator=generator) * 0.1 + torch.eye(3)).Q.abs() + 2
    for seed in range(5):
        later = balanced_kmeans(moved, 3, seed, 50)
        assert torch.equal(match(later.centres, first.centres)[later.labels], first.labels)


def test_as_many_anchors_as_centres() -> None:
    with pytest.raises(ValueError, match="centres of shape"):
        match(torch.zeros(2, 3), torch.zeros(3, 3))
