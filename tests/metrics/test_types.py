"""Measures of learnt types against scikit-learn, brute force over matchings and sums over clients."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from fedalign.contribution import Contribution, total
from fedalign.metrics.types import (
    BINS,
    adjusted_rand,
    assignment_entropy,
    assignment_metrics,
    assignment_sums,
    calibration_error,
    largest_share,
    match_types,
)

SEEDS = st.integers(0, 2**32 - 1)
COUNTS = {"true": st.integers(1, 4), "learnt": st.integers(1, 4), "seed": SEEDS}


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randint(0, 6, shape, generator=torch.Generator().manual_seed(seed)).double()


@given(**COUNTS)
def test_no_other_matching_gets_more_people_right(true: int, learnt: int, seed: int) -> None:
    confusion = draw(true, learnt, seed=seed)
    found = match_types(confusion)
    columns = [*range(learnt), *[None] * true]
    best = max(
        sum(float(confusion[row, column]) for row, column in enumerate(chosen) if column is not None)
        for chosen in itertools.permutations(columns, true)
    )
    used = [column for column in found.learnt if column is not None]
    assert len(used) == len(set(used)) == min(true, learnt)
    assert found.accuracy * float(confusion.sum()) == pytest.approx(best)


@given(**COUNTS)
def test_the_adjusted_rand_index_is_scikit_learn_s(true: int, learnt: int, seed: int) -> None:
    confusion = draw(true, learnt, seed=seed)
    people = [
        (row, column) for row in range(true) for column in range(learnt) for _ in range(int(confusion[row, column]))
    ]
    if len({row for row, _ in people}) < 2:
        assert adjusted_rand(confusion) == 0.0
    else:
        assert adjusted_rand(confusion) == pytest.approx(adjusted_rand_score(*zip(*people, strict=True)))


def test_everybody_a_type_of_its_own_is_the_same_partition() -> None:
    assert adjusted_rand(torch.eye(3)) == adjusted_rand_score([0, 1, 2], [0, 1, 2]) == 1.0


def test_shares_and_entropies() -> None:
    assert largest_share(torch.tensor([1.0, 3.0, 0.0])) == 0.75
    assert largest_share(torch.zeros(3)) == 0.0
    found = assignment_entropy(torch.tensor([[0.5, 1.0], [0.5, 0.0]]))
    assert found.tolist() == pytest.approx([math.log(2), 0.0])


def test_calibration_is_the_gap_of_each_bin_weighted_by_people() -> None:
    right, confidence, people = (
        torch.tensor([1.0, 0.0, 3.0]),
        torch.tensor([0.8, 0.0, 3.6]),
        torch.tensor([2.0, 0.0, 4.0]),
    )
    assert calibration_error(right, confidence, people) == pytest.approx((2 * abs(0.5 - 0.4) + 4 * abs(0.75 - 0.9)) / 6)
    assert calibration_error(torch.zeros(3), torch.zeros(3), torch.zeros(3)) == 0.0


def posteriors(people: int, learnt: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(3 * torch.randn(learnt, people, generator=generator, dtype=torch.float64), 0)


@given(people=st.integers(1, 30), learnt=st.integers(1, 4), seed=SEEDS, cut=st.integers(0, 30))
def test_clients_sums_add_up_to_the_measures_of_all_people(people: int, learnt: int, seed: int, cut: int) -> None:
    names = ("a|b", "unknown", "", None)
    g, types = posteriors(people, learnt, seed), [names[(seed + n * n) % 4] for n in range(people)]
    parts = [assignment_sums(g[:, :cut], types[:cut]), assignment_sums(g[:, cut:], types[cut:])]
    added = total([Contribution(part) for part in parts]).tensors
    found = assignment_metrics({**added, "delta/w": torch.zeros(2)})

    confidence, chosen = g.max(0)
    expected = {
        "assignment_entropy": float(torch.special.entr(g).sum(0).mean()),
        "largest_type_share": int(torch.bincount(chosen).max()) / people,
    }
    known = [n for n in range(people) if types[n] is not None]
    if known:
        true = [str(types[n]) for n in known]
        kinds = sorted(set(true))
        assigned = chosen[known].tolist()
        confusion = torch.zeros(len(kinds), learnt)
        for kind, number in zip(true, assigned, strict=True):
            confusion[kinds.index(kind), number] += 1
        matching = match_types(confusion)
        right = [matching.learnt[kinds.index(kind)] == number for kind, number in zip(true, assigned, strict=True)]
        bins = [min(int(float(confidence[n]) * BINS), BINS - 1) for n in known]
        gaps = [
            sum(right[i] - float(confidence[n]) for i, n in enumerate(known) if bins[i] == each) for each in range(BINS)
        ]
        expected |= {
            "type_accuracy": sum(right) / len(known),
            "adjusted_rand": adjusted_rand_score(true, assigned) if len(kinds) > 1 else 0.0,
            "calibration_error": sum(map(abs, gaps)) / len(known),
        }
    assert found == pytest.approx(expected)


def test_sure_and_right_is_perfect_under_any_numbering() -> None:
    g = torch.tensor([[0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]])
    found = assignment_metrics(assignment_sums(g, ["x", "x", "y", "y"]))
    assert found == {
        "assignment_entropy": 0.0,
        "largest_type_share": 0.5,
        "type_accuracy": 1.0,
        "adjusted_rand": 1.0,
        "calibration_error": 0.0,
    }


def test_sure_and_wrong_is_not_calibrated() -> None:
    g = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    found = assignment_metrics(assignment_sums(g, ["x", "y"]))
    assert (found["type_accuracy"], found["calibration_error"]) == (0.5, 0.5)


def test_nobody_has_no_measures_and_every_person_needs_a_type() -> None:
    assert assignment_metrics(assignment_sums(torch.zeros(3, 0), [])) == {}
    assert assignment_metrics({}) == {}
    with pytest.raises(ValueError, match="2 posteriors, but 1 types"):
        assignment_sums(torch.full((2, 2), 0.5), ["x"])
