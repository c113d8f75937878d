"""Preferences beyond a client's own: how many, which, with what weights, and as a function of their stream alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedalign.errors import UserError
from fedalign.methods.coverage import Coverage
from fedalign.methods.stated_preference import Preferences
from fedalign.rng import Streams

from .stated import dimensions

OWN = torch.tensor([[1.0, 0.0, 0.5, 0.0]]).expand(200, 4)


@pytest.fixture(scope="module")
def preferences() -> Preferences:
    return Preferences(dimensions())


def replaced(own: Coverage, vectors: Tensor = OWN, seed: int = 0) -> tuple[Tensor, Tensor]:
    return own.replaced(vectors, Preferences(dimensions()), Streams(seed).torch("coverage"))


@pytest.mark.parametrize("concentration", [None, 0.7])
def test_no_share_leaves_all_as_they_are_and_the_whole_one_none(
    preferences: Preferences, concentration: float | None
) -> None:
    vectors, covered = replaced(Coverage(0.0, None, concentration))
    assert torch.equal(vectors, OWN) and not bool(covered.any())
    vectors, covered = replaced(Coverage(1.0, None, concentration))
    assert bool(covered.all())
    assert not bool((vectors == OWN).all(1).any())
    assert vectors.dtype == torch.float32 and vectors.shape == OWN.shape


def test_a_share_is_how_often(preferences: Preferences) -> None:
    vectors, covered = replaced(Coverage(0.3, None, None), OWN[:1].expand(4000, 4))
    assert float(covered.float().mean()) == pytest.approx(0.3, abs=0.03)
    assert torch.equal(vectors[~covered], OWN[:1].expand(int((~covered).sum()), 4))


def test_every_combination_comes_as_often(preferences: Preferences) -> None:
    vectors, _ = replaced(Coverage(1.0, None, None), OWN[:1].expand(4000, 4))
    counts = torch.bincount(preferences.numbers(vectors), minlength=4)
    assert counts.sum() == 4000
    assert torch.allclose(counts / 4000, torch.full((4,), 0.25), atol=0.03)


def test_only_statements_of_the_list_come(preferences: Preferences) -> None:
    listed = ("praise, moving", "blame=0.5, still=2")
    vectors, _ = replaced(Coverage(1.0, listed, None))
    known = [preferences.vector(each, "") for each in listed]
    assert {tuple(row) for row in vectors.tolist()} == {tuple(each.tolist()) for each in known}


@pytest.mark.parametrize("concentration", [0.05, 1.0, 20.0])
def test_drawn_weights_are_positive_on_the_sides_that_are_drawn_and_sum_to_their_number(
    preferences: Preferences, concentration: float
) -> None:
    vectors, _ = replaced(Coverage(1.0, None, concentration))
    assert bool(((vectors > 0).sum(1) == 2).all())
    assert set(preferences.numbers((vectors > 0).float()).tolist()) == {0, 1, 2, 3}
    assert torch.allclose(vectors.sum(1), torch.full((200,), 2.0))
    spread = vectors[vectors > 0].std()
    assert (spread > 0.8) if concentration < 0.1 else (spread < 0.25) if concentration > 10 else (0.3 < spread < 0.8)


@given(st.floats(0, 1), st.sampled_from([None, 0.5]), st.integers(0, 1000), st.sampled_from([None, ("praise, still",)]))
def test_what_is_drawn_is_a_function_of_the_stream(
    share: float, concentration: float | None, seed: int, listed: tuple[str, ...] | None
) -> None:
    own = Coverage(share, listed, concentration)
    before = torch.get_rng_state()
    torch.manual_seed(seed)
    first = replaced(own, seed=seed)
    torch.manual_seed(seed + 1)
    again = replaced(own, seed=seed)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    torch.set_rng_state(before)


@pytest.mark.parametrize("concentration", [None, 0.5])
def test_another_stream_and_another_call_draw_others(preferences: Preferences, concentration: float | None) -> None:
    own = Coverage(0.5, None, concentration)
    assert not torch.equal(replaced(own)[0], replaced(own, seed=1)[0])
    generator = Streams(0).torch("coverage")
    one, other = (own.replaced(OWN, preferences, generator)[0] for _ in range(2))
    assert not torch.equal(one, other)


def test_statements_of_unknown_sides_are_refused(preferences: Preferences) -> None:
    Coverage(0.5, ("praise, still", "moving"), None).check(preferences)
    Coverage(0.5, None, None).check(preferences)
    with pytest.raises(UserError, match=r"learning\.coverage\.statements=stil: .*did you mean 'still'"):
        Coverage(0.5, ("praise", "stil"), None).check(preferences)
