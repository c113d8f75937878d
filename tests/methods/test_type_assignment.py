"""The E-step: posteriors, and the assignments that other methods have in its place."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedalign.errors import UserError
from fedalign.methods.type_assignment import (
    Clusters,
    Evidence,
    Hardest,
    KnownTypes,
    PerJudgment,
    Posterior,
    Together,
    TypeAssignment,
)

OWNER = torch.tensor([0, 1, 0, 1, 1])
LIKELY = torch.tensor([[-1.0, -2.0, -0.5, -0.1, -3.0], [-0.5, -0.3, -2.0, -1.0, -0.2], [-2.0, -1.0, -1.0, -2.0, -1.0]])


def evidence(
    likely: Tensor = LIKELY,
    prior: tuple[float, ...] = (0.5, 0.3, 0.2),
    number: int = 11,
    clusters: Tensor | None = None,
) -> Evidence:
    return Evidence(likely, OWNER, torch.tensor(prior).log(), number, clusters, ("x", "y"))


def by_hand(tau: float) -> list[list[float]]:
    """Return posteriors, one row a type, from plain products of probabilities."""
    prior, rows = (0.5, 0.3, 0.2), LIKELY.tolist()
    columns = []
    for person in (0, 1):
        scores = [
            p * math.exp(tau * sum(value for value, who in zip(row, OWNER.tolist(), strict=True) if who == person))
            for p, row in zip(prior, rows, strict=True)
        ]
        columns.append([score / sum(scores) for score in scores])
    return [list(row) for row in zip(*columns, strict=True)]


@pytest.mark.parametrize(("number", "tau"), [(1, 0.2), (6, 0.6), (11, 1.0), (50, 1.0)])
def test_a_posterior_is_bayes_rule_with_a_temper_that_rises_to_one(number: int, tau: float) -> None:
    found = Posterior(temper=0.2, temper_rounds=10).annotators(evidence(number=number))
    torch.testing.assert_close(found, torch.tensor(by_hand(tau), dtype=torch.float64), rtol=1e-6, atol=1e-9)


@given(values=st.lists(st.floats(-50, 0), min_size=5, max_size=5), prior=st.floats(0.01, 0.98))
def test_equal_types_have_the_prior_exactly(values: list[float], prior: float) -> None:
    shares = (prior, 0.99 - prior, 0.01)
    told = evidence(torch.tensor([values] * 3), shares)
    found = Posterior(temper=0.5, temper_rounds=3).annotators(told)
    expected = torch.softmax(told.log_prior.double(), 0)
    torch.testing.assert_close(found, expected[:, None].expand(3, 2), rtol=1e-15, atol=0)
    torch.testing.assert_close(found[:, 0], torch.tensor(shares, dtype=torch.float64), rtol=1e-6, atol=1e-8)


@given(order=st.permutations(range(3)), shift=st.floats(-20, 20))
def test_types_have_no_names_and_only_differences_tell(order: list[int], shift: float) -> None:
    for rule in (Posterior(0.3, 5), Hardest(), PerJudgment(4)):
        plain = rule.annotators(evidence())
        prior = tuple((0.5, 0.3, 0.2)[k] for k in order)
        turned = rule.annotators(evidence(LIKELY[order] + shift, prior))
        torch.testing.assert_close(turned, plain[order], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(plain.sum(0), torch.ones(2, dtype=torch.float64))


def test_hardest_takes_the_likeliest_whatever_the_prior() -> None:
    found = Hardest().annotators(evidence(prior=(0.98, 0.01, 0.01)))
    # Sums: person 0 has -1.5, -2.5, -3.0; person 1 has -5.1, -1.5, -4.0.
    assert found.tolist() == [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]


def test_per_judgment_weighs_judgments_of_one_annotator_apart() -> None:
    rule = PerJudgment(3)
    found = rule.judgments(LIKELY, OWNER, 2)
    assert found.shape == LIKELY.shape
    assert float((found[:, 0] - found[:, 2]).abs().max()) > 0.1
    torch.testing.assert_close(found.sum(0), torch.ones(5, dtype=torch.float64))
    assert rule.per_judgment
    assert not Posterior(1.0, 1).per_judgment


def test_clusters_and_known_types_are_one_hot() -> None:
    none = torch.zeros(3, 0)
    told = Evidence(none, OWNER[:0], torch.ones(3).log(), 1, torch.tensor([2, 0]), ("x", "y"))
    assert Clusters().annotators(told).tolist() == [[0, 1], [0, 0], [1, 0]]
    assert KnownTypes(("y", "z", "x")).annotators(told).tolist() == [[0, 1], [0, 0], [1, 0]]
    assert Together().annotators(Evidence(none[:1], OWNER[:0], torch.zeros(1), 1, None, ("x", "y"))).tolist() == [
        [1, 1]
    ]


@pytest.mark.parametrize(
    ("rule", "types", "said"),
    [(KnownTypes(("x", "y")), 3, "they must be as many"), (Together(), 2, r"set method\.types=1")],
)
def test_a_number_of_types_that_does_not_fit_is_refused(rule: TypeAssignment, types: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        rule.check(types)
    Posterior(1.0, 1).check(types)


def test_a_true_type_without_a_learnt_one_is_named() -> None:
    with pytest.raises(UserError, match="annotators here are of type y; name"):
        KnownTypes(("x", "z")).check_people(evidence(LIKELY[:2], (0.5, 0.5)).types)
