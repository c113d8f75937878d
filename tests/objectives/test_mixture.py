"""Mixtures and blends of reward models against brute force, SciPy and their own optimality conditions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from fedalign.objectives.mixture import blend, blend_weights, mixture_logits, mixture_weights, responsibilities

SEEDS = st.integers(0, 2**32 - 1)
SIZES = {"heads": st.integers(1, 4), "judgments": st.integers(1, 9), "seed": SEEDS}


def draw(heads: int, judgments: int, seed: int, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values = scale * torch.randn(heads, judgments, generator=generator, dtype=torch.float64)
    return values, torch.softmax(torch.randn(heads, generator=generator, dtype=torch.float64), 0)


@given(**SIZES)
def test_responsibilities_are_bayes_rule(heads: int, judgments: int, seed: int) -> None:
    losses, weights = draw(heads, judgments, seed)
    found = responsibilities(losses.abs(), weights.log())
    for judgment in range(judgments):
        joint = [float(weights[k]) * math.exp(-abs(float(losses[k, judgment]))) for k in range(heads)]
        assert found[:, judgment].tolist() == pytest.approx([value / sum(joint) for value in joint])


@given(**SIZES)
@settings(deadline=None)
def test_an_iteration_of_em_is_the_expected_share_over_all_ways_to_assign(
    heads: int, judgments: int, seed: int
) -> None:
    heads, judgments = min(heads, 3), min(judgments, 4)
    losses, weights = draw(heads, judgments, seed)
    likelihood = (-losses.abs()).exp()
    mass, counts = 0.0, torch.zeros(heads, dtype=torch.float64)
    for way in itertools.product(range(heads), repeat=judgments):
        p = math.prod(float(weights[k] * likelihood[k, j]) for j, k in enumerate(way))
        mass += p
        counts += p * torch.bincount(torch.tensor(way), minlength=heads)
    found = mixture_weights(losses.abs(), weights.log(), 1)
    torch.testing.assert_close(found.exp(), counts / mass / judgments)


@given(**SIZES)
@settings(deadline=None)
def test_em_never_lowers_the_likelihood_and_ends_at_the_most_likely_weights(
    heads: int, judgments: int, seed: int
) -> None:
    losses = draw(heads, judgments, seed)[0].abs()
    start = torch.full((heads,), 1.0 / heads, dtype=torch.float64).log()

    def log_likelihood(log_weights: Tensor) -> float:
        return float(torch.logsumexp(log_weights[:, None] - losses, 0).sum())

    ended = mixture_weights(losses, start, 3000)
    path = [*(log_likelihood(mixture_weights(losses, start, n)) for n in (0, 1, 2, 5)), log_likelihood(ended)]
    assert all(after >= before - 1e-9 for before, after in itertools.pairwise(path))
    # The likelihood is concave in the weights: no vertex of the simplex may promise more than the end point has.
    weights = ended.exp()
    likelihood = (-losses).exp()
    slopes = (likelihood / (weights @ likelihood)).sum(1)
    assert float(slopes.max()) <= judgments * (1 + 1e-2)


def test_without_judgments_weights_stay() -> None:
    start = torch.tensor([0.25, 0.75]).log()
    torch.testing.assert_close(mixture_weights(torch.zeros(2, 0), start, 5), start)
    assert blend_weights(torch.zeros(3, 0), torch.zeros(0), 5).tolist() == pytest.approx([1 / 3] * 3)


@given(**SIZES)
def test_mixture_log_odds_are_those_of_the_mixed_probability(heads: int, judgments: int, seed: int) -> None:
    logits, weights = draw(heads, judgments, seed)
    p = (weights[:, None] * torch.sigmoid(logits)).sum(0)
    torch.testing.assert_close(mixture_logits(logits, weights.log()), (p / (1 - p)).log())


def test_mixture_log_odds_of_sure_heads_are_finite_and_one_head_is_itself() -> None:
    logits = torch.tensor([[900.0, -900.0, 3.0]])
    torch.testing.assert_close(mixture_logits(logits, torch.zeros(1)), logits[0].double())
    both = mixture_logits(torch.tensor([[900.0], [-2.0]]), torch.tensor([0.0, -math.inf]))
    assert both.item() == pytest.approx(900.0)


def nll(weights: Tensor, logits: Tensor, preferred: Tensor) -> float:
    p = torch.sigmoid(weights.double() @ logits.double())
    return float(-(preferred * p.log() + (1 - preferred) * (1 - p).log()).mean())


@pytest.mark.parametrize("heads", [2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_fitted_weights_are_scipys(heads: int, seed: int) -> None:
    logits, truth = draw(heads, 40, seed)
    generator = torch.Generator().manual_seed(seed)
    preferred = (torch.rand(40, generator=generator) < torch.sigmoid(truth @ logits)).double()
    found = blend_weights(logits, preferred, 2000)
    best = minimize(
        lambda w: nll(torch.tensor(w), logits, preferred),
        np.full(heads, 1 / heads),
        bounds=[(0, 1)] * heads,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        method="SLSQP",
    )
    assert nll(found, logits, preferred) == pytest.approx(best.fun, abs=1e-4)
    assert found.tolist() == pytest.approx(best.x.tolist(), abs=0.02)


@given(heads=st.integers(1, 4), judgments=st.integers(1, 12), seed=SEEDS, scale=st.sampled_from([0.0, 0.1, 3.0, 30.0]))
@settings(deadline=None)
def test_a_fit_is_within_its_bound_of_every_vertex(heads: int, judgments: int, seed: int, scale: float) -> None:
    logits, _ = draw(heads, judgments, seed, scale)
    found = blend_weights(logits, torch.ones(judgments), 100)
    assert float(found.sum()) == pytest.approx(1.0)
    bound = 0.25 * float(logits.abs().amax(0).square().mean()) * math.log(heads) / 100

    def loss(weights: Tensor) -> float:
        return float(torch.nn.functional.softplus(-(weights @ logits)).mean())

    vertices = torch.eye(heads, dtype=torch.float64)
    assert all(loss(found) <= loss(vertex) + bound + 1e-9 for vertex in vertices)


def test_a_blend_is_a_weighted_sum_over_heads() -> None:
    logits = torch.arange(12.0).reshape(3, 2, 2)
    found = blend(logits, torch.tensor([0.5, 0.0, 2.0], dtype=torch.float64))
    assert found.tolist() == [[16.0, 18.5], [21.0, 23.5]]
