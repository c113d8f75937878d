"""How judgments are divided: halves that swap, what is kept for validation, and that test judgments are in none."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedalign.errors import UserError
from fedalign.methods.ranking_folds import Folds, first_of_each

from .ranking_worlds import shard


def as_set(index: Tensor) -> set[int]:
    found = set(index.tolist())
    assert len(found) == len(index)
    return found


@given(
    judgments=st.integers(2, 9),
    people=st.integers(1, 3),
    validation=st.sampled_from([0.0, 0.1, 0.34]),
    seed=st.integers(0, 9),
)
def test_the_folds_are_a_partition_by_annotator_and_swap_by_round(
    judgments: int, people: int, validation: float, seed: int
) -> None:
    folds = Folds(cross_fit=True, assess=None, validation=validation)
    names = [f"p{n}" for n in range(people)]
    client = shard("c", names, ["a"] * people, judgments)
    fitted, told = as_set(folds.fitting(client, seed, 1)), as_set(folds.assessing(client, seed, 1))
    held = as_set(folds.validating(client, seed))
    assert not fitted & told
    assert not held & (fitted | told)
    assert fitted | told | held == set(client.train.tolist())
    assert fitted == as_set(folds.assessing(client, seed, 2))
    assert told == as_set(folds.fitting(client, seed, 2))
    assert fitted == as_set(folds.fitting(client, seed, 3))
    assert fitted | told == as_set(folds.telling(client, seed))
    for number in range(people):
        own = [sum(int(client.owner[row]) == number for row in part) for part in (fitted, told, held)]
        assert abs(own[0] - own[1]) <= 1
        assert own[2] == int(validation * judgments)


def test_without_cross_fitting_all_do_both() -> None:
    folds, client = Folds(cross_fit=False, assess=None, validation=0.25), shard(judgments=8)
    for number in (1, 2):
        assert as_set(folds.fitting(client, 0, number)) == as_set(folds.assessing(client, 0, number))
    assert len(folds.fitting(client, 0, 1)) == 6


def test_so_many_of_each_annotator_tell_types_and_others_in_another_round() -> None:
    folds = Folds(cross_fit=True, assess=2, validation=0.0)
    client = shard("c", ("p0", "p1"), ("a", "b"), judgments=16)
    drawn = [as_set(folds.assessing(client, 0, number)) for number in (1, 3, 5)]
    assert all(len(each) == 4 for each in drawn)
    assert len({frozenset(each) for each in drawn}) > 1
    half = as_set(Folds(cross_fit=True, assess=None, validation=0.0).assessing(client, 0, 1))
    assert all(each <= half for each in drawn)


def test_the_division_is_the_client_s_and_the_seed_s() -> None:
    folds, client = Folds(cross_fit=True, assess=None, validation=0.0), shard(judgments=16)
    assert torch.equal(folds.fitting(client, 0, 1), folds.fitting(shard(judgments=16), 0, 1))
    assert not torch.equal(folds.fitting(client, 0, 1), folds.fitting(client, 1, 1))
    other = shard("bob", ("bob",), judgments=16)
    assert not torch.equal(folds.fitting(client, 0, 1), folds.fitting(other, 0, 1))


def test_an_annotator_with_too_few_judgments_is_named() -> None:
    with pytest.raises(UserError, match=r"'ann': 'ann' has 1 training judgments, of which 1 are left .* 2 are needed"):
        Folds(cross_fit=True, assess=None, validation=0.0).check(shard(judgments=1))
    with pytest.raises(UserError, match=r"has 2 training judgments, of which 1 are left"):
        Folds(cross_fit=True, assess=None, validation=0.5).check(shard(judgments=2))
    Folds(cross_fit=False, assess=None, validation=0.0).check(shard(judgments=1))
    Folds(cross_fit=True, assess=None, validation=0.0).check(shard(judgments=2))


def test_of_each_annotator_no_more_than_asked() -> None:
    client = shard("c", ("p0", "p1"), ("a", "b"), judgments=4)
    found = first_of_each(client, client.train, torch.Generator().manual_seed(0), lambda own: own - 1)
    assert torch.bincount(client.owner[found]).tolist() == [3, 3]
    assert found.tolist() == sorted(found.tolist())
    assert not len(first_of_each(client, client.train[:0], torch.Generator(), lambda own: own))
