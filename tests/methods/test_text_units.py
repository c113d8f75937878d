"""What DP-SGD protects on a client with texts: rows of users and examples, their seeds, and losses of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedalign.data.corpus import Example
from fedalign.methods.corpus import CorpusPhase
from fedalign.methods.text_units import RowLosses, TextUnits, units_of
from fedalign.privacy.local import Unit
from tests.language_models import random_model, shake

from .stages import PLACE, examples, phases, privacy, shard


class Told:
    """Losses that are numbers of the rows, and remembers what was asked."""

    def __init__(self) -> None:
        self.rows: list[Example] = []
        self.seeds: list[int] = []

    def __call__(self, rows: Sequence[Example], seeds: Sequence[int]) -> Tensor:
        self.rows, self.seeds = list(rows), list(seeds)
        return torch.arange(len(rows), dtype=torch.float32)


def test_an_example_is_one_row_and_a_user_as_many_as_asked_in_the_order_of_units() -> None:
    own, told = examples(7, users=2), Told()
    single = units_of(own, "example", 3, told, PLACE)
    assert single.units == 7
    losses = single.losses(torch.tensor([1, 4, 6]), 0)
    assert told.rows == [own[1], own[4], own[6]]
    assert losses.tolist() == [0.0, 1.0, 2.0]

    by_user = units_of(own, "user", 3, told, PLACE)
    assert by_user.units == 2
    losses = by_user.losses(torch.tensor([0, 1]), 0)
    # Rows of a unit are neighbours, and its loss is their mean.
    assert [e.user for e in told.rows] == ["u0"] * 3 + ["u1"] * 3
    assert losses.tolist() == [1.0, 4.0]
    assert len(set(told.seeds)) == 6


def test_a_user_with_more_examples_shows_different_ones_and_one_with_fewer_repeats_all() -> None:
    own, told = examples(5, users=5), Told()
    units = TextUnits([own[:4], own[4:]], 3, told, PLACE)
    shown: set[str] = set()
    for step in range(20):
        units.losses(torch.tensor([0, 1]), step)
        assert len({e.prompt for e in told.rows[:3]}) == 3
        assert told.rows[3:] == [own[4]] * 3
        shown |= {e.prompt for e in told.rows[:3]}
    assert shown == {e.prompt for e in own[:4]}


def test_draws_belong_to_the_unit_and_the_step_whoever_else_is_asked() -> None:
    own, told = examples(9), Told()
    units = units_of(own, "user", 2, told, PLACE)

    def asked(chosen: list[int], step: int) -> tuple[list[Example], list[int]]:
        units.losses(torch.tensor(chosen), step)
        return told.rows[-2:], told.seeds[-2:]

    assert asked([2], 3) == asked([0, 1, 2], 3)
    assert asked([2], 3)[1] != asked([2], 4)[1]
    assert asked([2], 3)[1] != asked([1], 3)[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model("gpt2", tmp_path_factory.mktemp("model"))


def loaded(folder: Path, stage: str, unit: Unit) -> tuple[CorpusPhase, RowLosses]:
    """Return a phase whose adapter acts, and its losses."""
    arm = "dprlhf" if stage != "reward" else "dprlhf_preferences"
    phase = phases(folder, arm=arm, local=privacy(unit))[stage]
    state = phase.initial(PLACE, {})
    phase.load(state)
    shake(phase.network)
    return phase, phase.row_losses(state)


@pytest.mark.parametrize("unit", ["example", "user"])
@pytest.mark.parametrize("stage", ["sft", "reward", "rl"])
def test_a_unit_s_loss_is_the_same_whichever_others_are_asked(folder: Path, stage: str, unit: Unit) -> None:
    phase, row_losses = loaded(folder, stage, unit)
    units = units_of(phase.own(shard(8)), unit, 2, row_losses, PLACE)
    with torch.no_grad():
        together = units.losses(torch.arange(units.units), 1)
        alone = torch.cat([units.losses(torch.tensor([one]), 1) for one in range(units.units)])
        last = units.losses(torch.tensor([0, units.units - 1]), 1)
    assert len(set(together.tolist())) > 1
    # Kernels may add up in another order where there are more rows.
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(last, together[[0, -1]], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stage", ["sft", "reward", "rl"])
def test_not_a_bit_of_a_unit_s_loss_depends_on_what_the_others_hold(folder: Path, stage: str) -> None:
    phase, row_losses = loaded(folder, stage, "example")
    own = list(phase.own(shard(8)))
    changed = [own[0], examples(4)[3], *own[2:]]
    kept = torch.arange(8) != 1
    with torch.no_grad():
        one, other = (
            units_of(each, "example", 2, row_losses, PLACE).losses(torch.arange(8), 1) for each in (own, changed)
        )
    assert torch.equal(one[kept], other[kept])
    assert one[1] != other[1]
