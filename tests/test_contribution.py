"""The algebra of named sums: adding, scaling, clipping, and the weighted mean of client deltas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedalign.contribution import (
    Contribution,
    RunningTotal,
    StackedContribution,
    UnorderedTotal,
    is_finite,
    mean_delta,
    stacked_delta,
    total,
    weighted_delta,
)

SEEDS = st.integers(0, 10_000)


def draw(seed: int) -> Contribution:
    generator = np.random.default_rng(seed)
    tensors = {
        name: torch.tensor(generator.normal(scale=10.0 ** generator.integers(-2, 3), size=shape), dtype=torch.float32)
        for name, shape in (("delta/a", (3, 2)), ("delta/b", (4,)), ("statistic", ()))
    }
    return Contribution(tensors, {"weight": float(generator.random()) + 0.1, "n": float(generator.integers(1, 9))})


def flat(contribution: Contribution) -> np.ndarray:
    return np.concatenate([np.asarray(t, dtype=np.float64).ravel() for t in contribution.tensors.values()])


def test_a_name_that_one_addend_lacks_counts_as_zero() -> None:
    one = Contribution({"a": torch.ones(2)}, {"n": 1.0})
    other = Contribution({"b": torch.ones(3)}, {"m": 2.0, "n": 0.5})
    summed = one + other
    assert {name: tensor.tolist() for name, tensor in summed.tensors.items()} == {"a": [1, 1], "b": [1, 1, 1]}
    assert summed.scalars == {"n": 1.5, "m": 2.0}


@given(SEEDS, st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64]))
def test_a_running_total_is_that_in_float64_bit_for_bit(seed: int, dtype: torch.dtype) -> None:
    """Whoever adds: terms of every kind, transposed ones and empty ones, each of which stays as it is."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((40, 300), (7,), (), (0, 2))
    terms = [
        [torch.randn(shape, generator=generator).mul(10 ** (seed % 7)).to(dtype) for shape in shapes] for _ in "abcd"
    ]
    terms = [[matrix.T, *rest] for matrix, *rest in terms]
    before = [[tensor.clone() for tensor in term] for term in terms]
    summed = total(Contribution({str(place): tensor for place, tensor in enumerate(term)}) for term in terms)
    for place, found in summed.tensors.items():
        expected = terms[0][int(place)].double().clone()
        for term in terms[1:]:
            expected = expected + term[int(place)].double()
        assert found.dtype == torch.float64
        assert torch.equal(found, expected)
    assert all(
        torch.equal(a, b) for term, old in zip(terms, before, strict=True) for a, b in zip(term, old, strict=True)
    )


def test_nothing_adds_up_to_nothing() -> None:
    assert total([]) == Contribution()


def test_counts_add_up_as_integers_would() -> None:
    big = 2**40
    summed = total([Contribution({"histogram": torch.tensor([big, 1])}) for _ in range(3)])
    assert summed.tensors["histogram"].tolist() == [3 * big, 3]


def test_shapes_that_do_not_fit_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"delta/w: shape \(3,\) does not add to \(2,\)"):
        total([Contribution({"delta/w": torch.ones(2)}), Contribution({"delta/w": torch.ones(3)})])


@given(seed=SEEDS, factor=st.floats(-10, 10))
def test_scaling_multiplies_tensors_and_scalars(seed: int, factor: float) -> None:
    one = draw(seed)
    scaled = one.scale(factor)
    np.testing.assert_allclose(flat(scaled), factor * flat(one), rtol=1e-6, atol=1e-12)
    assert scaled.scalars == {name: factor * value for name, value in one.scalars.items()}


@given(seed=SEEDS)
def test_the_norm_is_that_of_all_tensors_laid_end_to_end(seed: int) -> None:
    one = draw(seed)
    assert one.norm() == pytest.approx(np.linalg.norm(flat(one)), rel=1e-12)


def test_the_norm_does_not_overflow_in_half_precision() -> None:
    halves = Contribution({"a": torch.full((4,), 60_000.0, dtype=torch.float16)}, {"weight": 1e9})
    assert halves.norm() == pytest.approx(2 * float(torch.tensor(60_000.0, dtype=torch.float16)))


@given(seed=SEEDS, bound=st.floats(1e-3, 1e3))
def test_clipping_shortens_and_never_turns(seed: int, bound: float) -> None:
    one = draw(seed)
    clipped = one.clip(bound)
    shrink = min(1.0, bound / float(np.linalg.norm(flat(one))))
    np.testing.assert_allclose(flat(clipped), shrink * flat(one), rtol=1e-5)
    assert clipped.norm() <= bound * (1 + 1e-5)
    assert clipped.scalars == one.scalars


def test_what_is_short_enough_is_not_touched() -> None:
    one = Contribution({"a": torch.tensor([3.0, 4.0])})
    assert one.clip(5.0) is one


@given(seed=SEEDS, weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=6))
def test_the_mean_delta_moves_to_the_weighted_mean_of_the_clients(seed: int, weights: list[float]) -> None:
    generator = np.random.default_rng(seed)
    before = {"w": torch.tensor(generator.normal(size=(2, 3)))}
    clients = [{"w": torch.tensor(generator.normal(size=(2, 3)))} for _ in weights]
    replies = [weighted_delta(before, after, weight) for after, weight in zip(clients, weights, strict=True)]
    moved = before["w"] + mean_delta(total(replies))["w"]
    expected = np.average([after["w"].numpy() for after in clients], axis=0, weights=weights)
    np.testing.assert_allclose(moved.numpy(), expected, rtol=1e-9, atol=1e-9)


def test_a_delta_leaves_the_weights_it_was_made_from_alone() -> None:
    before, after = {"w": torch.ones(2)}, {"w": torch.full((2,), 3.0)}
    weighted_delta(before, after, 2.0)
    assert before["w"].tolist() == [1, 1]
    assert after["w"].tolist() == [3, 3]


def test_only_deltas_are_averaged() -> None:
    summed = Contribution({"delta/w": torch.tensor([6.0]), "histogram": torch.tensor([9.0])}, {"weight": 3.0})
    assert {name: tensor.tolist() for name, tensor in mean_delta(summed).items()} == {"w": [2.0]}


@pytest.mark.parametrize("scalars", [{}, {"weight": 0.0}, {"weight": -1.0}, {"weight": math.nan}])
def test_a_round_without_weight_is_an_error(scalars: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        mean_delta(Contribution({"delta/w": torch.ones(1)}, scalars))


FLOATS = st.floats(-1e18, 1e18, allow_subnormal=False)


@given(values=st.lists(st.tuples(FLOATS, FLOATS), min_size=1, max_size=8), data=st.data())
def test_in_any_order_contributions_have_the_same_total_the_correctly_rounded_one(
    values: list[tuple[float, float]], data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(values))
    running = UnorderedTotal()
    for tensor, scalar in shuffled:
        running.add(Contribution({"x": torch.tensor([tensor], dtype=torch.float64)}, {"n": scalar}))
    summed = running.value()
    # Twice the digits of float64 hold numbers of this range to 1e-13; math.fsum is exact.
    assert float(summed.tensors["x"]) == pytest.approx(math.fsum(tensor for tensor, _ in values), rel=1e-15, abs=1e-12)
    assert summed.scalars["n"] == pytest.approx(math.fsum(scalar for _, scalar in values), rel=1e-15, abs=1e-12)


def test_large_terms_that_cancel_leave_the_small_ones_whatever_the_order() -> None:
    terms = [1e16, 3.0, -1e16, 5.0]
    for turn in range(4):
        running = UnorderedTotal()
        for value in [*terms[turn:], *terms[:turn]]:
            running.add(Contribution({"x": torch.tensor([value], dtype=torch.float64)}, {"n": value}))
        assert running.value() == Contribution({"x": torch.tensor([8.0], dtype=torch.float64)}, {"n": 8.0})


@pytest.mark.parametrize("kind", [RunningTotal, UnorderedTotal])
def test_a_contribution_that_does_not_fit_is_added_in_no_part(kind: type[RunningTotal | UnorderedTotal]) -> None:
    running = kind()
    running.add(Contribution({"a": torch.ones(2), "b": torch.ones(2)}, {"n": 1.0}))
    with pytest.raises(ValueError, match=r"b: shape \(3,\) does not add to \(2,\)"):
        running.add(Contribution({"a": torch.ones(2), "b": torch.ones(3)}, {"n": 1.0}))
    summed = running.value()
    assert [tensor.tolist() for tensor in summed.tensors.values()] == [[1, 1], [1, 1]]
    assert summed.scalars == {"n": 1.0}


@pytest.mark.parametrize(
    ("values", "finite"),
    [
        ([1.0, -2.0], True),
        ([3e38, 3e38], True),  # their sum is more than float32 holds
        ([3e38, 3e38, -3e38, -3e38], True),
        ([1.0, math.inf], False),
        ([math.inf, -math.inf], False),
        ([math.nan, 1.0], False),
        ([], True),
    ],
)
def test_finite_means_every_element(values: list[float], finite: bool) -> None:
    assert is_finite(torch.tensor(values)) is finite


def test_a_stack_holds_what_its_clients_would_send_and_their_sum() -> None:
    before = {"a": torch.ones(2), "b": torch.zeros(())}
    after = {"a": torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), "b": torch.tensor([1.0, 2.0, 3.0])}
    own = [Contribution({"mine": torch.ones(1)}, {"n": 1.0}), Contribution(), Contribution(scalars={"n": 2.0})]
    stacked = stacked_delta(before, after, [1.0, 2.0, 0.5], own, {1: ArithmeticError("lost")})
    assert len(stacked) == 3
    for place, weight in ((0, 1.0), (2, 0.5)):
        alone = weighted_delta(before, {name: tensor[place] for name, tensor in after.items()}, weight)
        told = stacked.one(place)
        assert told.scalars == {**alone.scalars, **own[place].scalars}
        for name, tensor in alone.tensors.items():
            assert torch.equal(told.tensors[name], tensor)
    with pytest.raises(ArithmeticError, match="lost"):
        stacked.one(1)
    summed, expected = stacked.total([0, 2]), total([stacked.one(0), stacked.one(2)])
    assert summed.scalars == expected.scalars
    assert summed.tensors.keys() == expected.tensors.keys()
    for name, tensor in summed.tensors.items():
        assert tensor.dtype == torch.float64
        torch.testing.assert_close(tensor, expected.tensors[name])
    assert stacked.total([]).scalars == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_stack_adds_up_in_float64(dtype: torch.dtype) -> None:
    rows = torch.tensor([[2.0**24], [1.0], [-(2.0**24)]], dtype=dtype)
    stacked = StackedContribution({"x": rows}, [Contribution()] * 3)
    assert stacked.total([0, 1, 2]).tensors["x"].tolist() == [1.0]
    alone = stacked.total([1])
    assert alone.tensors["x"].dtype == dtype
    assert stacked.total([0, 1]).tensors["x"].tolist() == [2.0**24 + 1]
