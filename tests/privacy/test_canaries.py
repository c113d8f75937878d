"""Canaries: fair coins, and directions that are their own."""

from __future__ import annotations

import numpy as np
import pytest

from fedalign.privacy.canaries import Canaries

CANARIES = Canaries(count=40, norm=10.0, seed=3, opposed=False)


def test_a_coin_decides_for_each_canary() -> None:
    many = Canaries(count=4000, norm=10.0, seed=0, opposed=False)
    assert many.included.sum() == pytest.approx(2000, abs=130)
    assert (many.included == Canaries(4000, 10.0, 0, True).included).all()
    assert (many.included != Canaries(4000, 10.0, 1, False).included).any()
    assert list(many.names) == sorted(set(many.names))


def test_directions_are_unit_vectors_of_their_own() -> None:
    rows = np.stack([CANARIES.direction(number, phase, 130) for phase in ("wide", "other") for number in range(40)])
    gram = rows @ rows.T
    assert np.allclose(np.diag(gram), 1)
    # Cosines in 130 dimensions have a standard deviation of 0.088.
    off = gram[~np.eye(len(gram), dtype=bool)]
    assert abs(off).max() < 0.45
    assert off.std() == pytest.approx(130**-0.5, rel=0.1)


def test_held_out_canaries_are_silent_or_opposed() -> None:
    assert set(CANARIES.signs[~CANARIES.included]) == {0.0}
    assert set(Canaries(40, 10.0, 3, True).signs[~CANARIES.included]) == {-1.0}
    assert set(CANARIES.signs[CANARIES.included]) == {1.0}


def test_stages_are_dealt_out_in_turn() -> None:
    staged = Canaries(6, 10.0, 3, False, (("rl",), ("sft",), ("rl", "sft")))
    assert [staged.stages_of(number) for number in (0, 1, 5)] == [("rl",), ("sft",), ("rl", "sft")]
    assert staged.within("sft").tolist() == [False, True, True, False, True, True]
    assert staged.within("reward").tolist() == [False] * 6
    assert staged.within(None).all()
    assert CANARIES.within("sft").all()
