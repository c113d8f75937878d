"""Metrics as curves over cumulative rounds."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedalign.metrics.record import Metric
from fedalign.report.curves import Curves


def metric(phase: str, round: int, name: str, value: float, group: str | None = None) -> Metric:
    return Metric(phase, round, "eval", group, name, value, 1.0)


def test_a_phase_goes_on_where_the_one_before_it_ended() -> None:
    curves = Curves(
        [
            metric("a", 0, "x", 0.0),
            metric("a", 3, "x", 0.3),
            metric("b", 0, "x", 0.4),
            metric("b", 2, "x", 0.5),
            metric("c", 1, "x", 0.6),
        ]
    )
    curve = curves.get("x")
    assert curve is not None
    # Step 3 is the end of a and the start of b: the later value counts.
    assert curve.steps.tolist() == [0, 3, 5, 6] and curve.values.tolist() == [0.0, 0.4, 0.5, 0.6]
    assert curves.phases == {"a": 0, "b": 3, "c": 5}


def test_one_phase_alone_counts_its_own_rounds() -> None:
    curves = Curves([metric("a", 2, "x", 0.1), metric("b", 1, "x", 0.2), metric("b", 2, "y", 0.3)])
    alone = curves.of_phase("b")
    curve = alone.get("x")
    assert curve is not None and curve.steps.tolist() == [1]
    assert alone.names() == ["x", "y"]


def test_some_phases_go_on_from_each_other_without_the_others() -> None:
    rows = [metric("a", 2, "x", 0.1), metric("b", 3, "x", 0.2), metric("c", 1, "x", 0.3)]
    some = Curves(rows).of_phase("a", "c")
    curve = some.get("x")
    assert some.phases == {"a": 0, "c": 2}
    assert curve is not None and curve.steps.tolist() == [2, 3] and curve.values.tolist() == [0.1, 0.3]


def test_groups_are_apart_from_the_value_over_groups() -> None:
    curves = Curves([metric("a", 1, "x", 0.1), metric("a", 1, "x", 0.2, "g"), metric("a", 1, "z", 0.3, "g")])
    overall, group = curves.get("x"), curves.get("x", "g")
    assert overall is not None and overall.values.tolist() == [0.1]
    assert group is not None and group.values.tolist() == [0.2]
    assert curves.names() == ["x"]
    assert curves.get("z") is None and curves.get("x", "other") is None


def test_nothing_recorded() -> None:
    curves = Curves([])
    assert curves.phases == {} and curves.names() == [] and curves.get("x") is None and curves.extremes("x") is None


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from("ghi"), st.floats(-1, 1)), min_size=1))
def test_extremes_are_those_of_the_last_values_of_all_groups(rows: list[tuple[int, str, float]]) -> None:
    span = Curves([metric("a", step, "x", value, group) for step, group, value in rows]).extremes("x")
    assert span is not None
    last = {(step, group): value for step, group, value in rows}
    for index, step in enumerate(sorted({step for step, _ in last})):
        values = [value for (at, _), value in last.items() if at == step]
        assert span[0].steps[index] == span[1].steps[index] == step
        assert (span[0].values[index], span[1].values[index]) == (np.min(values), np.max(values))
