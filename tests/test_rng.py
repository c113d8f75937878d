"""Random streams: fixed numbers, the right generators, and a default generator that is put back."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedalign.rng import Streams

PLACE = Streams(5, "gpo", 3, "Nigeria")


def test_a_place_can_be_changed_in_part() -> None:
    assert PLACE.at(round=4) == Streams(5, "gpo", 4, "Nigeria")
    assert PLACE.at(phase="", client="") == Streams(5, "", 3, "")
    assert PLACE.at() == PLACE


@given(seed=st.integers(0, 2**70), purpose=st.text(max_size=8), round=st.integers(0, 10**6))
def test_seeds_fit_what_takes_them(seed: int, purpose: str, round: int) -> None:
    value = Streams(seed, round=round).integer(purpose)
    assert 0 <= value < 2**63
    torch.Generator().manual_seed(value)


def test_seeds_are_the_documented_hash() -> None:
    digest = hashlib.blake2b(b"5\x1fepisodes\x1fgpo\x1f3\x1fNigeria", digest_size=8).hexdigest()
    assert PLACE.integer("episodes") == int(digest, 16) // 2


def test_generators_start_from_the_seed() -> None:
    seed = PLACE.integer("draw")
    assert PLACE.numpy("draw").random() == np.random.Generator(np.random.PCG64(seed)).random()
    expected = torch.rand(3, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(torch.rand(3, generator=PLACE.torch("draw")), expected)


def test_code_on_the_default_generator_draws_from_the_stream_and_leaves_no_trace() -> None:
    draws = []
    for outer in (1, 2):
        torch.manual_seed(outer)
        before = torch.get_rng_state()
        with PLACE.torch_default("initial"):
            draws.append(torch.nn.Linear(3, 2).weight.detach())
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(draws[0], draws[1])


def test_the_default_generator_is_put_back_after_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(KeyError), PLACE.torch_default("initial"):
        torch.rand(3)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)
