"""Latent-space metrics on worlds whose answer is known: apart, mixed, collapsed, and too small."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedalign.metrics.latent import (
    active_units,
    active_units_of_sums,
    adjusted_rand_index,
    cluster_agreement,
    linear_probe,
    project,
    silhouette,
)

THRESHOLD = 0.01


@pytest.fixture(autouse=True)
def quiet():
    """Degenerate input must not make scikit-learn complain on a user's terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def world(apart: float, sizes: tuple[int, ...] = (15, 12, 9), seed: int = 0) -> tuple[torch.Tensor, list[str]]:
    """Return means of groups ``apart`` standard deviations from each other, and the groups."""
    generator = np.random.default_rng(seed)
    labels = [f"g{group}" for group, size in enumerate(sizes) for _ in range(size)]
    centres = apart * np.eye(len(sizes), 6)
    means = np.concatenate([centres[g] + generator.standard_normal((n, 6)) for g, n in enumerate(sizes)])
    return torch.tensor(means, dtype=torch.float32), labels


def constant(people: int, size: int = 4) -> torch.Tensor:
    return torch.full((people, size), 0.1)


@given(
    people=st.integers(1, 30),
    in_use=st.lists(st.booleans(), min_size=1, max_size=8),
    cuts=st.lists(st.integers(0, 30), max_size=4),
    seed=st.integers(0, 1000),
)
def test_active_units_count_what_varies_and_sums_give_the_same(
    people: int, in_use: list[bool], cuts: list[int], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([1.0 if used else 1e-3 for used in in_use])
    means = 5 + scale * torch.randn(people, len(in_use), generator=generator)
    expected = sum(np.var(means.double().numpy(), axis=0) > THRESHOLD)
    assert active_units(means, THRESHOLD) == expected
    assert expected <= sum(in_use)
    # Clients add up their own people, in whatever partition.
    parts = torch.tensor_split(means.double(), sorted(min(cut, people) for cut in cuts))
    total, squares = sum(part.sum(0) for part in parts), sum(part.square().sum(0) for part in parts)
    assert active_units_of_sums(total, squares, people, THRESHOLD) == expected


def test_the_variance_is_that_of_the_population_and_must_exceed_the_threshold() -> None:
    means = torch.tensor([[0.0, 0.0], [0.2, 0.5]], dtype=torch.float64)  # variances 0.01 and 0.0625
    assert active_units(means, 0.0101) == 1  # the sample's variances, 0.02 and 0.125, would both be in use
    assert active_units(means, 0.0099) == 2
    assert active_units(means, 0.0625) == 0


def test_nobody_and_one_person_use_nothing() -> None:
    assert active_units(torch.zeros(0, 3), THRESHOLD) == active_units(torch.ones(1, 3), THRESHOLD) == 0
    assert active_units_of_sums(torch.zeros(3), torch.zeros(3), 0, THRESHOLD) == 0
    assert active_units_of_sums(torch.full((3,), 7.0), torch.full((3,), 49.0), 1, THRESHOLD) == 0


def test_groups_that_are_apart_are_found_by_every_metric() -> None:
    means, labels = world(30)
    assert linear_probe(means, labels) == 1.0
    assert silhouette(means, labels) > 0.8
    assert cluster_agreement(means, labels, 3, seed=1) == 1.0


def test_groups_that_are_not_apart_are_not_found() -> None:
    means, labels = world(0, (100, 100))
    assert linear_probe(means, labels) == pytest.approx(0.5, abs=0.12)
    assert silhouette(means, labels) == pytest.approx(0, abs=0.05)
    assert cluster_agreement(means, labels, 2, seed=1) == pytest.approx(0, abs=0.1)


def test_the_probe_ignores_the_scale_of_a_dimension() -> None:
    means, labels = world(6)
    assert linear_probe(means * torch.tensor([1e-4, 1e-4, 1e-4, 1e4, 1e4, 1e4]), labels) == linear_probe(means, labels)


def test_the_probe_is_of_people_it_has_not_seen() -> None:
    generator = torch.Generator().manual_seed(0)
    # With more dimensions than people a fit on all of them would be perfect.
    assert linear_probe(torch.randn(40, 200, generator=generator), ["a", "b"] * 20) < 0.8


def test_the_probe_counts_every_person_once() -> None:
    # Folds of unequal size: of 11 and 2 people, one fold has 6 and 1, the other 5 and 1.
    means = torch.zeros(13, 2)
    assert linear_probe(means, ["a"] * 11 + ["b"] * 2) == pytest.approx(11 / 13)


def test_the_silhouette_is_its_definition() -> None:
    means, labels = world(3, (5, 4, 1), seed=3)
    x = means.double()
    distance = torch.cdist(x, x)
    scores = []
    for i, own in enumerate(labels):
        others = {g: [j for j, label in enumerate(labels) if label == g and j != i] for g in set(labels)}
        if not others[own]:
            scores.append(0.0)
            continue
        a = float(distance[i, others[own]].mean())
        b = min(float(distance[i, members].mean()) for g, members in others.items() if g != own)
        scores.append((b - a) / max(a, b))
    assert silhouette(means, labels) == pytest.approx(np.mean(scores), abs=1e-6)


def test_agreement_is_from_counting_pairs_of_people() -> None:
    assigned, labels = [0, 0, 1, 1, 2, 2, 2, 0], list("aabbccaa")
    pairs = [(i, j) for i in range(8) for j in range(i)]
    same = [(assigned[i] == assigned[j], labels[i] == labels[j]) for i, j in pairs]
    both = sum(a and b for a, b in same)
    one, other = sum(a for a, _ in same), sum(b for _, b in same)
    chance = one * other / len(pairs)
    expected = (both - chance) / ((one + other) / 2 - chance)
    assert adjusted_rand_index(torch.tensor(assigned), labels) == pytest.approx(expected)
    assert adjusted_rand_index(torch.tensor([2, 2, 0, 0, 1, 1, 1, 2]), labels) == pytest.approx(expected)


@given(seed=st.integers(0, 2**63 - 1))
@settings(max_examples=10)
def test_any_seed_of_a_stream_will_do_and_is_repeatable(seed: int) -> None:
    means, labels = world(1)
    assert cluster_agreement(means, labels, 3, seed) == cluster_agreement(means, labels, 3, seed)


def test_collapsed_means_have_a_value() -> None:
    means, labels = constant(10), ["a"] * 6 + ["b"] * 4
    assert active_units(means, THRESHOLD) == 0
    assert linear_probe(means, labels) == pytest.approx(0.6)  # the larger group
    assert silhouette(means, labels) is None
    assert cluster_agreement(means, labels, 2, seed=0) == 0.0
    projection = project(means)
    assert projection.points.tolist() == [[0.0, 0.0]] * 10 and projection.explained.tolist() == [0.0, 0.0]


def test_one_group_has_nothing_to_tell_apart() -> None:
    means, labels = world(0, (8,))
    assert linear_probe(means, labels) is None
    assert silhouette(means, labels) is None
    assert cluster_agreement(means, labels, 2, seed=0) == 0.0


@pytest.mark.parametrize("people", [0, 1, 2])
def test_too_few_people(people: int) -> None:
    means, labels = torch.eye(2)[:people], ["a", "b"][:people]
    assert linear_probe(means, labels) is None
    assert silhouette(means, labels) is None
    assert cluster_agreement(means, labels, 2, seed=0) == 0.0
    assert project(means).points.shape == (people, 2)


def test_a_group_of_one_has_no_probe_but_a_silhouette() -> None:
    means, labels = world(20, (5, 1))
    assert linear_probe(means, labels) is None
    assert silhouette(means, labels) > 0.3


def test_no_more_clusters_are_made_than_there_are_means() -> None:
    means = torch.tensor([[0.0], [0.0], [1.0], [1.0]])
    assert cluster_agreement(means, list("aabb"), 3, seed=0) == 1.0
    assert cluster_agreement(means, list("aabb"), 1, seed=0) == 0.0


def test_lengths_must_agree() -> None:
    for call in (linear_probe, silhouette, lambda m, g: cluster_agreement(m, g, 2, 0)):
        with pytest.raises(ValueError, match="3 posterior means, but 2 labels"):
            call(torch.zeros(3, 2), ["a", "b"])
    with pytest.raises(ValueError, match="3 people in clusters, but 2 labels"):
        adjusted_rand_index(torch.zeros(3), ["a", "b"])


@given(people=st.integers(2, 20), size=st.integers(1, 6), seed=st.integers(0, 1000))
def test_components_are_eigenvectors_of_the_covariance(people: int, size: int, seed: int) -> None:
    means = torch.randn(people, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    projection = project(means)
    values, vectors = torch.linalg.eigh(torch.cov(means.T).reshape(size, size))
    shares = (values / values.sum()).flip(0)[:2]
    np.testing.assert_allclose(projection.explained[: len(shares)], shares, atol=1e-9)
    centred = means - means.mean(0)
    for column in range(min(2, size)):
        vector = vectors[:, -1 - column]
        vector = vector * torch.sign(vector[vector.abs().argmax()])
        if projection.explained[column] > 1e-9:
            np.testing.assert_allclose(projection.points[:, column], centred @ vector, atol=1e-6)


def test_the_projection_does_not_turn_over_with_the_order_of_people() -> None:
    means, _ = world(4)
    order = torch.randperm(len(means), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(project(means[order]).points, project(means).points[order])


def test_one_dimension_is_the_first_component() -> None:
    projection = project(torch.tensor([[1.0], [3.0]]))
    np.testing.assert_allclose(projection.points, [[-1.0, 0.0], [1.0, 0.0]], atol=1e-12)
    assert projection.explained.tolist() == [1.0, 0.0]
