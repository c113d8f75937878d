"""Metric sums survive the trip as scalars, whatever groups are called, and add up on the way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedalign.contribution import Contribution, total
from fedalign.metrics.record import MetricSum, decode, encode

NAMES = st.sampled_from(["train/loss", "unseen/alignment_score", "accuracy"])
GROUPS = st.text(max_size=6) | st.sampled_from(["a|b", "a|n", "a|sum", "|", "metric|x|y|n", "Côte d'Ivoire", ""])
SUMS = st.builds(MetricSum, NAMES, GROUPS, st.floats(-1e6, 1e6), st.floats(0, 1e6))


@given(sums=st.lists(SUMS, max_size=6, unique_by=lambda item: (item.name, item.group)))
def test_there_and_back(sums: list[MetricSum]) -> None:
    told = [item for item in sums if item.n > 0]
    assert decode(encode(sums)) == sorted(told, key=lambda item: (item.name, item.group))


def test_other_scalars_are_left_alone() -> None:
    scalars = {"weight": 1.0, "contributor/x": 1.0, "seen|n": 2.0, **encode([MetricSum("accuracy", "g", 1.0, 2.0)])}
    assert decode(scalars) == [MetricSum("accuracy", "g", 1.0, 2.0)]


def test_sums_of_one_client_and_of_many_add_up() -> None:
    own = encode([MetricSum("accuracy", "g", 1.0, 2.0), MetricSum("accuracy", "g", 0.5, 1.0)])
    other = encode([MetricSum("accuracy", "g", 4.0, 4.0), MetricSum("accuracy", "h", 1.0, 1.0)])
    summed = total([Contribution(scalars=own), Contribution(scalars=other)])
    assert decode(summed.scalars) == [MetricSum("accuracy", "g", 5.5, 7.0), MetricSum("accuracy", "h", 1.0, 1.0)]


def test_a_metric_of_no_terms_is_none_and_half_a_metric_is_refused() -> None:
    assert decode({"metric|a|g|sum": 1.0, "metric|a|g|n": 0.0}) == []
    for broken in ({"metric|a|g|n": 1.0}, {"metric|a|n": 1.0, "metric|a|sum": 1.0}):
        with pytest.raises(ValueError, match="is no metric sum"):
            decode(broken)
