"""Fairness of per-group scores, with Jain's index as the oracle."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedalign.metrics.fairness import fairness

SCORES = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20)


@given(scores=SCORES)
def test_the_index_is_jain_s(scores: list[float]) -> None:
    jain = sum(scores) ** 2 / (len(scores) * sum(score**2 for score in scores))
    assert fairness(scores).index == pytest.approx(jain)


@given(scores=SCORES)
def test_the_spread_is_that_of_the_population(scores: list[float]) -> None:
    spread = fairness(scores)
    assert spread.mean == pytest.approx(statistics.fmean(scores))
    assert spread.cov == pytest.approx(statistics.pstdev(scores) / statistics.fmean(scores), abs=1e-9)
    assert spread.worst == min(scores)
    assert spread.gap == pytest.approx(max(scores) - min(scores), abs=1e-12)


@given(scores=SCORES, factor=st.floats(0.1, 10))
def test_the_index_has_no_unit(scores: list[float], factor: float) -> None:
    assert fairness([factor * score for score in scores]).index == pytest.approx(fairness(scores).index)


def test_one_group_is_served_evenly() -> None:
    assert (fairness([0.3]).index, fairness([0.3]).gap) == (1.0, 0.0)


@pytest.mark.parametrize("scores", [[], [0.0, 0.0], [1.0, -2.0], [math.nan, 1.0], [math.inf, 1.0]])
def test_what_has_no_fairness_is_refused(scores: list[float]) -> None:
    with pytest.raises(ValueError, match="finite scores with a positive mean"):
        fairness(scores)
