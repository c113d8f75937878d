"""Templates: what may be added up, and the one flat vector that it becomes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedalign.contribution import Contribution
from fedalign.template import Template

TEMPLATE = Template({"delta/w": (2, 3), "delta/b": (), "counts": (4,)})
SHAPES = st.lists(st.integers(0, 3), max_size=3).map(tuple)


@given(shapes=st.dictionaries(st.text("abc/", min_size=1, max_size=4), SHAPES, max_size=4))
def test_a_vector_holds_every_number_in_the_order_of_the_names(shapes: dict[str, tuple[int, ...]]) -> None:
    template = Template(shapes)
    vector = np.arange(template.size, dtype=np.float64)
    tensors = template.unflatten(vector)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == shapes
    flat = [number for name in shapes for number in tensors[name].reshape(-1).tolist()]
    assert flat == vector.tolist()
    np.testing.assert_array_equal(template.flatten(Contribution(tensors)), vector)


def test_a_sum_that_is_missing_is_zero() -> None:
    flat = TEMPLATE.flatten(Contribution({"counts": torch.ones(4)}))
    assert flat.tolist() == [0.0] * 7 + [1.0] * 4
    assert not TEMPLATE.flatten(Contribution(scalars={"weight": 1.0})).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_every_type_becomes_float64_without_rounding(dtype: torch.dtype) -> None:
    flat = TEMPLATE.flatten(Contribution({"delta/b": torch.tensor(3).to(dtype)}))
    assert flat.dtype == np.float64
    assert flat[6] == 3.0


def test_unflattened_tensors_are_copies_of_the_type_asked_for() -> None:
    vector = np.zeros(TEMPLATE.size)
    tensors = TEMPLATE.unflatten(vector, torch.float32)
    tensors["counts"] += 1
    assert not vector.any()
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


@pytest.mark.parametrize("length", [10, 12])
def test_a_vector_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"\\({length},\\), but the template holds 11 numbers"):
        TEMPLATE.unflatten(np.zeros(length))


GOOD = {"delta/w": torch.ones(2, 3), "delta/b": torch.tensor(0.5)}
STRANGE = {
    "extra tensor": ({**GOOD, "delta/running_mean": torch.ones(2)}, {}, "delta/running_mean: no such sum"),
    "wrong shape": ({"delta/w": torch.ones(3, 2)}, {}, r"delta/w: shape \(3, 2\), not \(2, 3\)"),
    "scalar for a vector": ({"counts": torch.tensor(1.0)}, {}, "counts: shape"),
    "NaN": ({"delta/b": torch.tensor(float("nan"))}, {}, "delta/b: holds NaN or Inf"),
    "Inf": ({"delta/b": torch.tensor(-float("inf"))}, {}, "delta/b: holds NaN or Inf"),
    "fp16 overflow": ({"delta/b": torch.tensor(1e6).half()}, {}, "delta/b: holds NaN or Inf"),
    "NaN weight": (GOOD, {"weight": float("nan")}, "weight: is nan"),
    "infinite scalar": (GOOD, {"n": float("inf")}, "n: is inf"),
    "negative weight": (GOOD, {"weight": -1e-9}, "weight: is -1e-09"),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_what_must_not_be_added_is_refused(kind: str) -> None:
    tensors, scalars, reason = STRANGE[kind]
    with pytest.raises(ValueError, match=reason):
        TEMPLATE.check(Contribution(tensors, scalars))


def test_what_may_be_added_passes() -> None:
    TEMPLATE.check(Contribution({"delta/b": torch.tensor(1e30)}, {"weight": 1e30, "metric|x|g|sum": -1.0}))
    TEMPLATE.check(Contribution({"delta/b": torch.tensor(1.0).half()}, {"weight": 0.0}))
    TEMPLATE.check(Contribution())


def test_the_longest_fitting_prefix_gives_the_scale() -> None:
    scales = TEMPLATE.scales({"delta/": 2.0, "delta/b": 5.0})
    assert scales.tolist() == [2.0] * 6 + [5.0] + [1.0] * 4
    assert TEMPLATE.scales({}).tolist() == [1.0] * 11


def test_a_state_has_a_delta_for_each_parameter_and_templates_join() -> None:
    deltas = Template.of_deltas({"w": torch.zeros(2), "b": torch.zeros(())})
    assert deltas.tensors == {"delta/w": (2,), "delta/b": ()}
    both = deltas | Template({"counts": (3,)})
    assert list(both.tensors) == ["delta/w", "delta/b", "counts"]
    assert both.size == 6
