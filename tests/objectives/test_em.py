"""EM over latent types: Bayes' rule, symmetries, and sums too small for a float."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedalign.objectives.em import (
    effective_types,
    mixture_log_likelihood,
    one_hot_of,
    per_annotator,
    per_judgment_responsibilities,
    responsibilities_of,
)
from fedalign.objectives.mixture import mixture_weights

SIZES = {"types": st.integers(1, 5), "people": st.integers(1, 6), "seed": st.integers(0, 2**32 - 1)}


def draw(types: int, people: int, seed: int, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values = -scale * torch.rand(types, people, generator=generator, dtype=torch.float64)
    return values, torch.softmax(torch.randn(types, generator=generator, dtype=torch.float64), 0)


@given(**SIZES, temper=st.floats(0, 1))
def test_responsibilities_are_bayes_rule_of_tempered_likelihoods(
    types: int, people: int, seed: int, temper: float
) -> None:
    values, prior = draw(types, people, seed)
    found = responsibilities_of(values, prior.log(), temper)
    for person in range(people):
        joint = [float(prior[k]) * math.exp(temper * float(values[k, person])) for k in range(types)]
        assert found[:, person].tolist() == pytest.approx([value / sum(joint) for value in joint])


@given(**SIZES)
def test_equal_types_leave_the_prior_whatever_their_likelihood(types: int, people: int, seed: int) -> None:
    values, prior = draw(types, people, seed, scale=1e5)
    found = responsibilities_of(values[:1].expand(types, people), prior.log(), 1.0)
    assert torch.equal(found, responsibilities_of(torch.zeros(types, people), prior.log(), 1.0))
    torch.testing.assert_close(found, prior[:, None].expand(types, people), rtol=1e-12, atol=0)
    even = responsibilities_of(torch.zeros(4, people), torch.full((4,), 0.25).log(), 1.0)
    assert torch.equal(even, torch.full((4, people), 0.25, dtype=torch.float64))


@given(**SIZES, data=st.data())
def test_permuting_types_permutes_everything(types: int, people: int, seed: int, data: st.DataObject) -> None:
    values, prior = draw(types, people, seed)
    order = data.draw(st.permutations(range(types)))
    owner = torch.arange(people) % 2
    pairs = [
        (responsibilities_of(values, prior.log(), 0.5), responsibilities_of(values[order], prior[order].log(), 0.5)),
        (one_hot_of(values), one_hot_of(values[order])),
        (per_annotator(values, owner, 2), per_annotator(values[order], owner, 2)),
        *zip(
            per_judgment_responsibilities(values, owner, 2, 3),
            per_judgment_responsibilities(values[order], owner, 2, 3),
            strict=True,
        ),
    ]
    for before, after in pairs:
        torch.testing.assert_close(after, before[order])
    torch.testing.assert_close(
        mixture_log_likelihood(values[order], prior[order].log()), mixture_log_likelihood(values, prior.log())
    )
    assert effective_types(prior[order]) == pytest.approx(effective_types(prior))


def test_large_sums_neither_underflow_nor_lose_what_tells_types_apart() -> None:
    each = torch.full((2, 200_000), -0.5)
    each[1, 0] = -0.5 - math.log(3)
    sums = per_annotator(each, torch.zeros(200_000, dtype=torch.int64), 1)
    assert float(sums[0]) == -1e5
    found = responsibilities_of(sums, torch.tensor([0.5, 0.5]).log(), 1.0)
    assert found[:, 0].tolist() == pytest.approx([0.75, 0.25], abs=1e-6)
    assert float(mixture_log_likelihood(sums, torch.tensor([0.5, 0.5]).log())) == pytest.approx(-1e5 + math.log(2 / 3))


def test_a_type_that_nobody_is_of_gets_nobody() -> None:
    found = responsibilities_of(torch.tensor([[0.0], [-1e5]]), torch.tensor([0.0, 1.0]).log(), 1.0)
    assert found.tolist() == [[0.0], [1.0]]


def test_judgments_add_up_by_owner() -> None:
    found = per_annotator(torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]]), torch.tensor([2, 0, 2]), 4)
    assert found.tolist() == [[2.0, 0.0, 5.0, 0.0], [16.0, 0.0, 40.0, 0.0]]


def test_a_hard_assignment_takes_the_first_of_the_likeliest() -> None:
    found = one_hot_of(torch.tensor([[1.0, 0.0, 2.0], [1.0, 3.0, 2.0], [1.0, 3.0, -math.inf]]))
    assert found.T.tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 0]]


@given(**SIZES)
def test_a_mixture_is_the_log_of_the_mean_likelihood(types: int, people: int, seed: int) -> None:
    values, prior = draw(types, people, seed)
    expected = (prior @ values.exp()).log()
    torch.testing.assert_close(mixture_log_likelihood(values, prior.log()), expected)
    own = prior[:, None].expand(types, people)
    torch.testing.assert_close(mixture_log_likelihood(values, own.log()), expected)


def test_as_many_types_count_as_hold_people() -> None:
    assert effective_types(torch.full((4,), 0.25)) == pytest.approx(4.0)
    assert effective_types(torch.tensor([0.0, 1.0, 0.0])) == pytest.approx(1.0)
    assert effective_types(torch.tensor([0.5, 0.5, 0.0])) == pytest.approx(2.0)


@given(**SIZES, iterations=st.integers(0, 5))
def test_weights_of_each_person_are_fitted_to_its_own_judgments(
    types: int, people: int, seed: int, iterations: int
) -> None:
    values, _ = draw(types, 3 * people, seed)
    owner = torch.arange(3 * people) % people
    found, weights = per_judgment_responsibilities(values, owner, people + 1, iterations)
    assert weights[:, people].tolist() == pytest.approx([1 / types] * types)
    start = torch.full((types,), 1 / types, dtype=torch.float64).log()
    for person in range(people):
        mine = values[:, owner == person]
        expected = mixture_weights(-mine, start, iterations)
        torch.testing.assert_close(weights[:, person], expected.exp())
        torch.testing.assert_close(found[:, owner == person], torch.softmax(expected[:, None] + mine, 0))
