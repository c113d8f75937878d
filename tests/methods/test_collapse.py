"""The alarm of EM and the restart of an empty type."""

from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedalign.contribution import State
from fedalign.errors import RunFailed
from fedalign.methods.collapse import ALARMS, LOW, RESTARTS, Collapse, no_alarms
from fedalign.methods.type_model import PRIOR, named, type_of
from fedalign.rng import Streams

from .ranking_worlds import same

RESTART = Collapse(largest=0.8, effective=0.5, patience=2, action="restart", restarts=1, scale=0.1)
BAD = torch.tensor([0.9, 0.07, 0.03])


def state_of(prior: Tensor) -> State:
    types: State = {}
    for number in range(len(prior)):
        types |= named({"w": torch.full((50,), float(number + 1))}, number)
    return {**types, PRIOR: prior, **no_alarms()}


def watched(rule: Collapse, prior: Tensor, rounds: int) -> State:
    state = state_of(prior)
    for number in range(1, rounds + 1):
        state = rule.watch(state, Streams(7, round=number))
    return state


def counters(state: State) -> tuple[int, int, int]:
    return int(state[LOW]), int(state[ALARMS]), int(state[RESTARTS])


@pytest.mark.parametrize(
    ("prior", "collapsed"),
    [
        ((0.85, 0.15), True),
        ((0.79, 0.21), False),
        ((0.79, 0.21, 0.0, 0.0), True),
        ((1.0,), False),
        ((0.25, 0.25, 0.25, 0.25), False),
    ],
)
def test_types_have_collapsed_by_the_largest_share_or_by_entropy(prior: tuple[float, ...], collapsed: bool) -> None:
    assert RESTART.collapsed(torch.tensor(prior)) == collapsed


def test_an_alarm_takes_as_many_rounds_in_a_row_as_patience_says() -> None:
    rule = Collapse(largest=0.8, effective=0.5, patience=3, action="warn", restarts=0, scale=0.1)
    assert [counters(watched(rule, BAD, number)) for number in (1, 2, 3, 4)] == [
        (1, 0, 0),
        (2, 0, 0),
        (0, 1, 0),
        (1, 1, 0),
    ]
    state = rule.watch({**watched(rule, BAD, 2), PRIOR: torch.tensor([0.4, 0.3, 0.3])}, Streams(7))
    assert counters(state) == (0, 0, 0)


def test_a_warning_leaves_the_types_alone(caplog: pytest.LogCaptureFixture) -> None:
    rule = Collapse(largest=0.8, effective=0.5, patience=1, action="warn", restarts=5, scale=0.1)
    with caplog.at_level(logging.WARNING):
        state = watched(rule, BAD, 1)
    assert "types have collapsed for 1 rounds: their shares are 0.90, 0.07, 0.03" in caplog.text
    assert same({**state, **no_alarms()}, {**state_of(BAD), **no_alarms()})


@given(first=st.floats(0.81, 0.99), rest=st.floats(0.05, 0.95))
def test_a_restart_splits_the_fullest_type_and_keeps_the_sum(first: float, rest: float) -> None:
    prior = torch.tensor([(1 - first) * rest, first, (1 - first) * (1 - rest)])
    empty = int(prior.argmin())
    state = watched(RESTART, prior, 2)
    assert counters(state) == (0, 1, 1)
    torch.testing.assert_close(state[PRIOR].sum(), torch.tensor(1.0))
    assert float(state[PRIOR][1]) == float(state[PRIOR][empty]) == pytest.approx(float(prior[1] + prior[empty]) / 2)
    full, fresh = type_of(state, 1)["w"], type_of(state, empty)["w"]
    assert not torch.equal(full, fresh)
    # All its parameters are 2, so that a shake of a tenth has a standard deviation of 0.2.
    assert float((fresh - full).std()) == pytest.approx(0.2, rel=0.4)
    kept = ({0, 1, 2} - {1, empty}).pop()
    assert torch.equal(type_of(state, kept)["w"], torch.full((50,), float(kept + 1)))
    assert torch.equal(full, torch.full((50,), 2.0))


def test_a_restart_is_the_same_each_time_and_another_in_another_round() -> None:
    assert same(watched(RESTART, BAD, 2), watched(RESTART, BAD, 2))
    late = RESTART.watch({**state_of(BAD), LOW: torch.tensor(1)}, Streams(7, round=9))
    assert not same(late, watched(RESTART, BAD, 2))


def test_restarts_run_out() -> None:
    state = {**watched(RESTART, BAD, 2), PRIOR: BAD}
    before = {name: tensor for name, tensor in state.items() if name.startswith("types.")}
    for number in (3, 4):
        state = RESTART.watch(state, Streams(7, round=number))
    assert counters(state) == (0, 2, 1)
    assert same(before, {name: state[name] for name in before})
    assert torch.equal(state[PRIOR], BAD)


def test_a_run_can_be_ended_instead() -> None:
    rule = Collapse(largest=0.8, effective=0.5, patience=2, action="fail", restarts=0, scale=0.1)
    watched(rule, BAD, 1)
    with pytest.raises(RunFailed, match=r"collapsed for 2 rounds: their shares are 0\.90") as failure:
        watched(rule, BAD, 2)
    assert "\n" not in str(failure.value)
