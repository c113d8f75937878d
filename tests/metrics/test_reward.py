"""Reward accuracy and calibration, by counting."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedalign.metrics.reward import calibration_error, calibration_sums, expected_calibration_error, pair_accuracy

PAIRS = st.lists(st.tuples(st.sampled_from([-2.0, -1e-9, 0.0, 1e-9, 3.0]), st.booleans()), max_size=30)
PREDICTIONS = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40)


@given(pairs=PAIRS)
def test_accuracy_is_by_counting(pairs: list[tuple[float, bool]]) -> None:
    logits = torch.tensor([logit for logit, _ in pairs], dtype=torch.float64)
    tie = torch.tensor([tie for _, tie in pairs], dtype=torch.bool)
    points = [1.0 if logit > 0 else 0.5 if logit == 0 else 0.0 for logit, tie in pairs if not tie]
    assert pair_accuracy(logits, tie) == (sum(points), len(points))


def test_swapping_the_answers_swaps_right_and_wrong() -> None:
    logits = torch.tensor([0.3, -0.2, 0.0, 5.0])
    tie = torch.zeros(4, dtype=torch.bool)
    assert pair_accuracy(logits, tie) == (2.5, 4)
    assert pair_accuracy(-logits, tie) == (1.5, 4)


def test_an_undefined_prediction_is_no_wrong_one() -> None:
    with pytest.raises(ValueError, match="must not be NaN"):
        pair_accuracy(torch.tensor([1.0, math.nan]), torch.tensor([False, False]))


@given(predictions=PREDICTIONS, bins=st.sampled_from([1, 2, 4, 8, 16]))
def test_calibration_error_is_by_counting(predictions: list[tuple[float, bool]], bins: int) -> None:
    expected = 0.0
    for index in range(bins):
        # Powers of two: edges of bins are exact.
        low, high = index / bins, (index + 1) / bins
        inside = [(p, y) for p, y in predictions if low <= p < high or (p == 1 and index == bins - 1)]
        if inside:
            gap = sum(p for p, _ in inside) / len(inside) - sum(y for _, y in inside) / len(inside)
            expected += len(inside) / len(predictions) * abs(gap)
    probabilities = torch.tensor([p for p, _ in predictions], dtype=torch.float64)
    outcomes = torch.tensor([y for _, y in predictions])
    assert expected_calibration_error(probabilities, outcomes, bins) == pytest.approx(expected, abs=1e-12)


@given(predictions=PREDICTIONS, cut=st.integers(0, 40))
def test_clients_sums_add_up(predictions: list[tuple[float, bool]], cut: int) -> None:
    probabilities = torch.tensor([p for p, _ in predictions], dtype=torch.float64)
    outcomes = torch.tensor([float(y) for _, y in predictions])
    parts = [calibration_sums(probabilities[part], outcomes[part], 10) for part in (slice(cut), slice(cut, None))]
    together = expected_calibration_error(probabilities, outcomes, 10)
    assert calibration_error(parts[0] + parts[1]) == pytest.approx(together, abs=1e-12)


def test_what_happens_as_often_as_it_is_said_to_is_calibrated() -> None:
    probabilities = torch.tensor([0.25] * 4 + [0.75] * 4)
    calibrated = torch.tensor([1, 0, 0, 0, 1, 1, 1, 0])
    assert expected_calibration_error(probabilities, calibrated, 10) == pytest.approx(0)
    assert expected_calibration_error(probabilities, 1 - calibrated, 10) == pytest.approx(0.5)
    # One bin for all hides it: on the whole, half is said and half happens.
    assert expected_calibration_error(probabilities, 1 - calibrated, 1) == pytest.approx(0)


def test_no_prediction_has_no_error() -> None:
    assert expected_calibration_error(torch.zeros(0), torch.zeros(0), 10) == 0.0


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan])
def test_what_is_no_probability_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="within"):
        calibration_sums(torch.tensor([bad]), torch.ones(1), 10)


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="probabilities, but"):
        calibration_sums(torch.ones(2), torch.ones(3), 10)
