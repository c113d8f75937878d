"""Client-level clipping: whatever a client says, it moves the sum by the bound at most."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedalign.contribution import Contribution
from fedalign.privacy.client_level import ClientLevel
from fedalign.template import Template

TEMPLATE = Template({"delta/a": (3,), "delta/b": (2,), "counts": (2,)})
PLAIN = ClientLevel(1.0, {}, {}, 1.0, None)
NUMBERS = st.floats(-1e30, 1e30, allow_nan=False)


def contribution(numbers: list[float], weight: float | None = 1.0, dtype: torch.dtype = torch.float64) -> Contribution:
    tensors = TEMPLATE.unflatten(np.array(numbers), dtype)
    return Contribution(tensors, {} if weight is None else {"weight": weight})


@given(
    numbers=st.lists(NUMBERS, min_size=7, max_size=7),
    weight=st.one_of(st.none(), st.floats(0, 1e30)),
    bound=st.floats(1e-6, 1e6),
    factor=st.floats(1e-3, 1e3),
)
def test_the_whole_contribution_is_within_the_bound(
    numbers: list[float], weight: float | None, bound: float, factor: float
) -> None:
    clip = ClientLevel(bound, {}, {"counts": factor}, 1.0, None)
    vector, norm = clip.clip(contribution(numbers, weight), TEMPLATE, bound)
    assert np.isfinite(vector).all()
    assert np.linalg.norm(vector) <= bound
    assert norm >= 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_short_types_are_clipped_in_float64(dtype: torch.dtype) -> None:
    vector, norm = PLAIN.clip(contribution([3e4] * 7, 1.0, dtype), TEMPLATE, 1.0)
    assert vector.dtype == np.float64
    assert norm == pytest.approx(3e4 * np.sqrt(7), rel=1e-2)  # beyond the range of float16
    assert np.linalg.norm(vector) == pytest.approx(1.0)


def test_all_tensors_share_one_bound() -> None:
    vector, norm = PLAIN.clip(contribution([1.0] * 7), TEMPLATE, 1.0)
    assert norm == pytest.approx(np.sqrt(7))
    np.testing.assert_allclose(vector, np.full(7, 1 / np.sqrt(7)))


def test_a_contribution_within_the_bound_is_left_alone() -> None:
    numbers = [0.1, -0.2, 0.0, 0.3, 0.05, 0.01, 0.02]
    vector, norm = PLAIN.clip(contribution(numbers), TEMPLATE, 1.0)
    np.testing.assert_array_equal(vector, numbers)
    assert norm == np.linalg.norm(numbers)


@pytest.mark.parametrize("weight", [1.0, 7.0, 1e6, 1e30])
def test_a_heavy_client_counts_as_one_of_the_bounding_weight(weight: float) -> None:
    # Deltas come multiplied with the weight, as for a weighted mean; counts do not.
    delta = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    told = Contribution({"delta/a": weight * delta, "counts": torch.tensor([0.5, 0.0])}, {"weight": weight})
    vector, _ = PLAIN.clip(told, TEMPLATE, 10.0)
    np.testing.assert_allclose(vector, [0.1, 0.2, 0.3, 0, 0, 0.5, 0])


def test_a_light_client_counts_for_its_share_of_the_bounding_weight() -> None:
    heavy = ClientLevel(10.0, {}, {}, 4.0, None)
    half = heavy.clip(contribution([2 * 0.1] * 7, weight=2.0), TEMPLATE, 10.0)[0]
    full = heavy.clip(contribution([8 * 0.1] * 7, weight=8.0), TEMPLATE, 10.0)[0]
    np.testing.assert_allclose(half[:5], 0.05)
    np.testing.assert_allclose(full[:5], 0.1)


def test_a_client_of_no_weight_has_no_delta() -> None:
    vector, _ = PLAIN.clip(contribution([1.0] * 7, weight=0.0), TEMPLATE, 10.0)
    assert vector[:5].tolist() == [0.0] * 5


def test_scales_share_the_bound_out_and_do_not_loosen_it() -> None:
    numbers = [0.1] * 5 + [50.0, 50.0]
    plain = PLAIN.clip(contribution(numbers), TEMPLATE, 1.0)[0]
    scaled = ClientLevel(1.0, {}, {"counts": 0.001}, 1.0, None).clip(contribution(numbers), TEMPLATE, 1.0)[0]
    assert np.abs(plain[:5]).max() < 0.002
    np.testing.assert_allclose(scaled[:5], 0.1)
    np.testing.assert_allclose(scaled[5:], 0.05)


def test_a_phase_may_have_a_bound_of_its_own() -> None:
    clip = ClientLevel(1.0, {"prior": 3.0}, {}, 1.0, None)
    assert (clip.bound_of("prior"), clip.bound_of("gpo")) == (3.0, 1.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_no_scaling_mends_is_not_clipped(bad: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        PLAIN.clip(contribution([bad] + [0.0] * 6), TEMPLATE, 1.0)
