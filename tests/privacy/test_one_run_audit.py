"""The one-run audit: published values, a brute-force p-value, honest guesses, and randomised response as the truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedalign.errors import UserError
from fedalign.privacy.audit_bound import CanaryScores
from fedalign.privacy.one_run_audit import OneRunBound, guess, one_run_bound, one_run_p_value


@pytest.mark.parametrize(
    ("correct", "guesses", "canaries", "expected"),
    [
        (100, 100, 100, 3.49),
        (500, 500, 500, 5.10),
        (1000, 1000, 1000, 5.78),
        (5000, 5000, 5000, 7.28),
        (190, 200, 1000, 2.39),
    ],
)
def test_bounds_are_the_known_ones(correct: int, guesses: int, canaries: int, expected: float) -> None:
    assert one_run_bound(correct, guesses, canaries, 1e-5) == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize(("correct", "guesses", "canaries"), [(1, 1, 1), (3, 5, 9), (40, 50, 50), (50, 50, 80)])
@pytest.mark.parametrize("epsilon", [0.0, 0.7, 3.0])
@pytest.mark.parametrize("delta", [0.0, 1e-3])
def test_the_p_value_is_that_of_brute_force(
    correct: int, guesses: int, canaries: int, epsilon: float, delta: float
) -> None:
    mass = stats.binom.pmf(np.arange(guesses + 1), guesses, 1 / (1 + np.exp(-epsilon)))
    beta = mass[correct:].sum()
    alpha = max(mass[correct - i : correct].sum() / i for i in range(1, correct + 1))
    expected = min(1.0, beta + 2 * canaries * delta * alpha)
    assert one_run_p_value(epsilon, correct, guesses, canaries, delta) == pytest.approx(expected, rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_every_smaller_epsilon_is_ruled_out_too(data: st.DataObject) -> None:
    guesses = data.draw(st.integers(1, 300))
    correct = data.draw(st.integers(0, guesses))
    delta = data.draw(st.sampled_from([0.0, 1e-5, 1e-3]))
    bound = one_run_bound(correct, guesses, 300, delta)
    for epsilon in np.linspace(0, bound, 12, endpoint=False) if bound else []:
        assert one_run_p_value(float(epsilon), correct, guesses, 300, delta) < 0.05
    assert one_run_p_value(bound + 1e-6, correct, guesses, 300, delta) >= 0.05
    assert one_run_bound(correct, guesses, 300, delta, 0.99) <= bound


def test_chance_rules_out_nothing() -> None:
    assert one_run_bound(50, 100, 100, 1e-5) == 0
    assert one_run_bound(0, 0, 100, 1e-5) == 0


def test_a_delta_that_explains_everything_leaves_no_bound() -> None:
    assert one_run_bound(100, 100, 100, 0.5) == 0


def test_counts_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="must not decrease"):
        one_run_p_value(1.0, 3, 2, 5, 0.0)


def test_the_highest_are_guessed_included_and_the_lowest_held_out() -> None:
    scores = np.array([5.0, 4.0, 3.0, 2.0, 1.0, 0.0])
    included = np.array([True, False, True, True, False, True])
    # Of the two highest one is included, of the two lowest one is held out.
    assert guess(scores, included, 4) == 2
    assert guess(scores, included, 1) == 1
    assert guess(scores, included, 6) == 3


def test_scores_that_say_nothing_do_not_leak_through_their_order() -> None:
    included = np.arange(100) < 50
    assert guess(np.zeros(100), included, 100) == 0
    assert guess(np.zeros(100), ~included, 40) == 0


def test_randomised_response_is_bounded_by_its_epsilon() -> None:
    generator = np.random.default_rng(0)
    truth, over, found = 1.5, 0, []
    for _ in range(200):
        included = generator.random(400) < 0.5
        told = np.where(generator.random(400) < 1 / (1 + np.exp(-truth)), included, ~included)
        scores = told + 1e-3 * generator.random(400)
        found.append(one_run_bound(guess(scores, included, 400), 400, 400, 0.0))
        over += found[-1] > truth
    assert over <= 0.05 * 200
    # The guesses use all there is, so that the bound comes close.
    assert np.mean(found) > 0.7 * truth


def test_the_number_of_guesses_is_chosen_at_a_price() -> None:
    scores = CanaryScores(np.arange(100.0, 200), np.arange(100.0), fair_coins=True)
    generator = np.random.default_rng(0)
    alone, _ = OneRunBound((1.0,)).epsilon(scores, 1e-5, 0.05, generator)
    chosen, told = OneRunBound((0.1, 1.0)).epsilon(scores, 1e-5, 0.05, generator)
    assert alone == one_run_bound(200, 200, 200, 1e-5, 0.95)
    assert chosen == one_run_bound(200, 200, 200, 1e-5, 0.975) < alone
    assert told == "200 of 200 guesses right, 200 canaries"


def test_canaries_without_coins_are_refused() -> None:
    scores = CanaryScores(np.ones(10), np.zeros(10), fair_coins=False)
    with pytest.raises(UserError, match="fair coin"):
        OneRunBound((1.0,)).measure(scores, 1e-5, 0.05, np.random.default_rng(0))
