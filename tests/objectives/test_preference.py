"""Likelihood of a judgment against its definition and PyTorch's own Bernoulli distribution."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Bernoulli

from fedalign.objectives.preference import preference_nll

LOGIT = st.floats(-15, 15)


@given(logit=LOGIT)
def test_a_judgment_is_a_draw_from_a_bernoulli_distribution(logit: float) -> None:
    logits = torch.tensor([logit, logit], dtype=torch.float64)
    preferred = torch.tensor([1.0, 0.0], dtype=torch.float64)
    expected = -Bernoulli(logits=logits).log_prob(preferred)
    torch.testing.assert_close(preference_nll(logits, preferred), expected)


@given(logit=LOGIT)
def test_the_likelihoods_of_both_outcomes_add_up_to_one(logit: float) -> None:
    both = preference_nll(torch.tensor([logit, logit], dtype=torch.float64), torch.tensor([1.0, 0.0]).double())
    assert float((-both).exp().sum()) == pytest.approx(1.0)


@given(logit=LOGIT, preferred=st.sampled_from([0.0, 0.5, 1.0]))
def test_swapping_the_responses_changes_nothing(logit: float, preferred: float) -> None:
    here = preference_nll(torch.tensor([logit]), torch.tensor([preferred]))
    there = preference_nll(torch.tensor([-logit]), torch.tensor([1 - preferred]))
    torch.testing.assert_close(here, there)


def test_a_tie_is_the_mean_of_both_outcomes_and_costs_least_where_neither_is_expected() -> None:
    logits = torch.linspace(-4, 4, 9)
    tie = preference_nll(logits, torch.full((9,), 0.5))
    won, lost = preference_nll(logits, torch.ones(9)), preference_nll(logits, torch.zeros(9))
    torch.testing.assert_close(tie, (won + lost) / 2)
    assert int(tie.argmin()) == 4
    assert float(tie[4]) == pytest.approx(math.log(2))


def test_far_logits_neither_overflow_nor_vanish() -> None:
    value = preference_nll(torch.tensor([-1000.0, 1000.0]), torch.ones(2))
    assert value.tolist() == [1000.0, 0.0]
