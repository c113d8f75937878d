"""How much clients count by what is wanted there: closed forms, weights on the simplex, and sums that add up."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedalign.contribution import Contribution, total
from fedalign.methods.preference_weighting import WEIGHTS, Even, Losses, MinMax, QFair, Weighting

LOSS, COUNT = "preferences/loss_sum", "preferences/count"
NAMES = ("a", "b", "c")
counts = st.lists(st.integers(0, 5), min_size=4, max_size=4)
shares = st.lists(st.floats(0, 1), min_size=4, max_size=4)


def losses(count: list[int], mean: list[float]) -> Losses:
    """Return how some preferences fared; the last place is of those that are no plain combination."""
    number = torch.tensor(count, dtype=torch.float32)
    return Losses(number * torch.tensor(mean, dtype=torch.float32), number)


def state(weights: list[float] | None = None) -> dict[str, Tensor]:
    return {WEIGHTS: torch.full((3,), 1 / 3) if weights is None else torch.tensor(weights)}


@pytest.mark.parametrize("weighting", [Even(), QFair(2.0, 0.1)])
def test_those_without_a_state_tell_and_keep_nothing(weighting: Weighting) -> None:
    assert weighting.initial(3) == {} and weighting.shapes(3) == {}
    assert weighting.told(losses([1, 0, 0, 0], [0.5] * 4)) == {}
    assert weighting.update({}, Contribution()) == {} and weighting.report({}, NAMES) == {}


@given(counts, shares)
def test_even_counts_all_the_same(count: list[int], mean: list[float]) -> None:
    assert Even().weight({}, losses(count, mean)) == 1.0


@given(counts.filter(any), shares, st.floats(0, 4), st.floats(0.001, 1))
def test_q_fair_is_a_power_of_the_mean_loss_between_its_least_and_1(
    count: list[int], mean: list[float], q: float, least: float
) -> None:
    expected = sum(c * m for c, m in zip(count, mean, strict=True)) / sum(count)
    found = QFair(q, least).weight({}, losses(count, mean))
    assert found == pytest.approx(max(least, expected**q), rel=1e-4, abs=1e-6)
    assert least <= found <= 1.0
    assert QFair(0.0, least).weight({}, losses(count, mean)) == 1.0


def test_a_client_of_which_nothing_is_known_counts_whole() -> None:
    nothing = losses([0] * 4, [0.0] * 4)
    assert nothing.mean == 1.0
    assert QFair(3.0, 0.1).weight({}, nothing) == 1.0
    assert MinMax(1.0, 3.0).weight(state(), nothing) == 1.0
    assert all(not tensor.any() for tensor in MinMax(1.0, 3.0).told(nothing).values())


def test_min_max_counts_by_the_weight_of_a_client_s_texts() -> None:
    own = MinMax(1.0, 3.0)
    given_state = state([0.6, 0.3, 0.1])
    assert own.weight(given_state, losses([4, 0, 0, 0], [0.5] * 4)) == pytest.approx(1.8)
    assert own.weight(given_state, losses([1, 0, 3, 0], [0.5] * 4)) == pytest.approx((1.8 + 3 * 0.3) / 4)
    # What is no plain combination counts as an even weight does.
    assert own.weight(given_state, losses([0, 0, 0, 2], [0.5] * 4)) == pytest.approx(1.0)
    assert own.weight(given_state, losses([1, 0, 0, 1], [0.5] * 4)) == pytest.approx(1.4)
    assert own.weight(own.initial(3), losses([1, 2, 3, 0], [0.2, 0.9, 0.1, 0])) == pytest.approx(1.0)


def test_min_max_is_exponentiated_gradient_on_mean_losses() -> None:
    own = MinMax(0.5, 3.0)
    given_state = state([0.5, 0.3, 0.2])
    told = total(
        [
            Contribution(own.told(losses([2, 0, 0, 0], [0.9, 0, 0, 0]))),
            Contribution(own.told(losses([0, 4, 0, 0], [0, 0.2, 0, 0]))),
            Contribution(own.told(losses([1, 0, 3, 0], [0.1, 0, 0.4, 0]))),
        ]
    )
    means = [(0.9 + 0.1 / 4) / 1.25, 0.2, 0.4]
    raw = [w * math.exp(0.5 * m) for w, m in zip((0.5, 0.3, 0.2), means, strict=True)]
    found = own.update(given_state, told)[WEIGHTS]
    assert found.tolist() == pytest.approx([each / sum(raw) for each in raw], rel=1e-5)
    report = own.report({WEIGHTS: found}, NAMES)
    assert report == pytest.approx(
        {f"train/preference_weight/{n}": w for n, w in zip(NAMES, found.tolist(), strict=True)}
    )


def test_a_preference_that_is_absent_moves_as_the_mean_of_those_that_are_there() -> None:
    own = MinMax(1.0, 3.0)
    told = Contribution({LOSS: torch.tensor([0.8, 0.0, 0.2]), COUNT: torch.tensor([1.0, 0.0, 1.0])})
    found = own.update(state(), told)[WEIGHTS]
    raw = [math.exp(0.8), math.exp(0.5), math.exp(0.2)]
    assert found.tolist() == pytest.approx([each / sum(raw) for each in raw], rel=1e-5)
    nobody = Contribution({LOSS: torch.zeros(3), COUNT: torch.zeros(3)})
    assert own.update(state(), nobody) == {}


@given(
    st.lists(st.floats(-2, 2, width=32), min_size=3, max_size=3),
    st.lists(st.floats(-2, 2, width=32), min_size=3, max_size=3),
    st.lists(st.floats(0.01, 1), min_size=3, max_size=3),
    st.floats(0, 50),
    st.floats(1, 3),
)
def test_weights_stay_on_the_simplex_and_below_their_cap_whatever_noise_adds(
    loss: list[float], count: list[float], weights: list[float], step: float, most: float
) -> None:
    own, begun = MinMax(step, most), torch.tensor(weights) / sum(weights)
    found = own.update({WEIGHTS: begun}, Contribution({LOSS: torch.tensor(loss), COUNT: torch.tensor(count)}))
    if found:
        assert bool((found[WEIGHTS] >= 0).all())
        assert float(found[WEIGHTS].sum()) == pytest.approx(1.0, abs=1e-5)
        assert float(found[WEIGHTS].max()) <= most / 3 + 1e-6
    else:
        assert max(count) <= 1e-3


def test_a_weight_that_is_capped_gives_the_rest_to_the_others_in_proportion() -> None:
    told = Contribution({LOSS: torch.tensor([1.0, 0.0, 0.0]), COUNT: torch.ones(3)})
    found = MinMax(50.0, 1.5).update(state([0.2, 0.2, 0.6]), told)[WEIGHTS]
    assert found.tolist() == pytest.approx([0.5, 0.125, 0.375], rel=1e-5)
    lost = MinMax(1e4, 3.0).update(state(), told)[WEIGHTS]
    again = MinMax(1.0, 3.0).update(
        {WEIGHTS: lost}, Contribution({LOSS: torch.tensor([0.0, 1.0, 0.0]), COUNT: torch.ones(3)})
    )
    assert bool(torch.isfinite(again[WEIGHTS]).all())


@given(st.lists(st.tuples(counts, shares), min_size=1, max_size=5), st.integers(0, 5))
def test_what_is_told_adds_up_however_clients_are_grouped_and_no_client_tells_more_than_1(
    clients: list[tuple[list[int], list[float]]], cut: int
) -> None:
    own = MinMax(1.0, 3.0)
    each = [Contribution(own.told(losses(*one))) for one in clients]
    for one in each:
        assert {name: tuple(tensor.shape) for name, tensor in one.tensors.items()} == own.shapes(3)
        assert 0 <= float(one.tensors[COUNT].sum()) <= 1 + 1e-6
        assert bool((one.tensors[LOSS] <= one.tensors[COUNT] + 1e-6).all())
    whole = total(each)
    parts = [part for part in (each[:cut], each[cut:]) if part]
    joined = total([total(part) for part in parts])
    for name, tensor in whole.tensors.items():
        assert torch.allclose(tensor, joined.tensors[name], atol=1e-12)
