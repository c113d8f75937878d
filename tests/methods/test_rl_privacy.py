"""Stages of alignment under DP-SGD: no unit reaches another's gradient, which is autograd's, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedalign.data.corpus import Example
from fedalign.errors import UserError
from fedalign.methods.corpus import CorpusPhase
from fedalign.methods.sentiment_model import SentimentModel
from fedalign.methods.text_units import units_of
from fedalign.privacy import unit_gradients
from fedalign.privacy.local import GradSample, Unit
from tests.cases import mostly_slow
from tests.language_models import random_model, shake

from .stages import PLACE, examples, phases, privacy

ALGORITHMS = ("ppo", "rloo", "grpo")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model("gpt2", tmp_path_factory.mktemp("model"))


def chosen(algorithm: str) -> str:
    return f"method/algorithm@method.rl.algorithm={algorithm}"


def phase_of(folder: Path, stage: str, mode: GradSample, unit: Unit, *overrides: str) -> CorpusPhase:
    """Return a phase whose adapter and head act."""
    arm = "dprlhf_preferences" if stage == "reward" else "dprlhf"
    found = phases(folder, *overrides, arm=arm, local=privacy(unit, mode))[stage]
    found.load(found.initial(PLACE, {}))
    shake(found.network)
    return found


def by_unit(phase: CorpusPhase, own: Sequence[Example], mode: GradSample, unit: Unit) -> Tensor:
    """Return the gradient of each unit as DP-SGD finds it in a batch of all, shape (U, parameters)."""
    found: list[Tensor] = []
    usual = unit_gradients.clip_units

    def noting(gradients: Sequence[Tensor], bound: float) -> list[Tensor]:
        found.append(torch.cat([g.flatten(1) for g in gradients], 1).clone())
        return usual(gradients, bound)

    state = phase.initial(PLACE, {})
    units = units_of(own, unit, 2, phase.row_losses(state), PLACE)
    phase.network.train()
    ways = unit_gradients.unit_gradients(phase.network, privacy(unit, mode).settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unit_gradients, "clip_units", noting)
        ways.clipped_sum(lambda some: units.losses(some, 0), torch.arange(units.units))
    ways.close()
    return torch.cat(found)


@pytest.mark.parametrize("unit", ["example", "user"])
@pytest.mark.parametrize("mode", ["hooks", "loop"])
@pytest.mark.parametrize("algorithm", mostly_slow(ALGORITHMS, ["ppo"]))
def test_a_prompt_moves_no_bit_of_another_s_gradient(
    folder: Path, algorithm: str, mode: GradSample, unit: Unit
) -> None:
    phase = phase_of(folder, "rl", mode, unit, chosen(algorithm))
    own = list(examples(4, users=2 if unit == "user" else 4))
    changed = [own[0], replace(own[1], prompt="a very bright plot"), *own[2:]]
    before, after = by_unit(phase, own, mode, unit), by_unit(phase, changed, mode, unit)
    others = torch.arange(len(before)) != 1
    assert torch.equal(before[others], after[others])
    assert not torch.equal(before[1], after[1])
    assert float(before.norm(dim=1).max()) > 1e-3


def test_normalised_advantages_would_let_it(folder: Path) -> None:
    """On the path without privacy, where they are allowed."""
    own = list(examples(4, users=4))
    changed = [own[0], replace(own[1], prompt="a very bright plot"), *own[2:]]
    found = {}
    for whiten in (False, True):
        phase = phases(folder, f"method.rl.algorithm.whiten={str(whiten).lower()}")["rl"]
        state = phase.initial(PLACE, {})
        phase.load(state)
        shake(phase.network)
        losses = [phase.row_losses(state)(each, [1, 2, 3, 4])[0] for each in (own, changed)]
        trained = [p for p in phase.network.parameters() if p.requires_grad]
        one, other = (torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained)]) for loss in losses)
        found[whiten] = torch.equal(one, other)
    assert found == {False: True, True: False}


@pytest.mark.parametrize("unit", mostly_slow(["example", "user"], ["example"]))
@pytest.mark.parametrize("stage", mostly_slow(["sft", "reward", *ALGORITHMS], ["sft", "reward", "ppo"]))
def test_gradients_by_unit_are_those_of_each_alone(folder: Path, stage: str, unit: Unit) -> None:
    choice = (chosen(stage),) if stage in ALGORITHMS else ()
    phase = phase_of(folder, "rl" if choice else stage, "hooks", unit, *choice)
    own = examples(6, users=3)
    found = by_unit(phase, own, "hooks", unit)
    state = phase.initial(PLACE, {})
    units = units_of(own, unit, 2, phase.row_losses(state), PLACE)
    trained = [p for p in phase.network.parameters() if p.requires_grad]
    assert len(found) == units.units
    for place in range(units.units):
        (loss,) = units.losses(torch.tensor([place]), 0)
        alone = torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained)])
        torch.testing.assert_close(found[place], alone, rtol=1e-4, atol=1e-5)


def test_ghost_clipping_serves_texts_one_by_one_and_is_refused_for_several(folder: Path) -> None:
    phase = phase_of(folder, "sft", "ghost", "example")
    own = examples(6, users=3)
    expected = by_unit(phase, own, "loop", "example").double()
    bound = float(expected.norm(dim=1).median())
    phase.network.train()
    ways = unit_gradients.unit_gradients(phase.network, privacy(clip=bound, grad_sample="ghost").settings)
    texts, people = (units_of(own, unit, 2, phase.row_losses({}), PLACE) for unit in ("example", "user"))
    sums = ways.clipped_sum(lambda some: texts.losses(some, 0), torch.arange(6))
    with pytest.raises(UserError, match=r"ghost: .* does not read one row a unit; set hooks or loop"):
        ways.clipped_sum(lambda some: people.losses(some, 0), torch.arange(3))
    ways.close()
    clipped = (expected * (bound / expected.norm(dim=1, keepdim=True)).clamp(max=1)).sum(0)
    off = torch.cat([s.flatten() for s in sums]) - clipped
    assert float(off.norm()) < 1e-3 * float(clipped.norm())
    with pytest.raises(UserError, match=r"grad_sample=ghost: both responses of a pair"):
        phase_of(folder, "reward", "ghost", "example")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.rl.algorithm.epochs=2", r"epochs=2 and method\.rl\.algorithm\.minibatches=1 use a prompt more often"),
        ("method.rl.algorithm.minibatches=2", r"minibatches=2 use a prompt more often"),
        ("method.rl.algorithm.whiten=true", r"whiten=true lets every prompt reach the gradients of all"),
        ("method.rl.adaptive={target:1.0,horizon:100}", r"method\.rl\.adaptive: a weight that follows"),
        ("method.rl.local.max_grad_norm=1.0", r"max_grad_norm=1\.0: DP-SGD bounds"),
    ],
)
def test_what_local_noise_does_not_hide_is_refused(folder: Path, override: str, message: str) -> None:
    adaptive = (
        ("+method.rl.adaptive._target_=fedalign.methods.kl_control.AdaptiveKL",) if "adaptive" in override else ()
    )
    assert phases(folder, override, *adaptive)
    with pytest.raises(UserError, match=message):
        phases(folder, override, *adaptive, local=privacy())


def test_an_adaptive_weight_is_refused_under_any_guarantee_and_odd_steps_always(folder: Path) -> None:
    adaptive = "method.rl.adaptive={_target_:fedalign.methods.kl_control.AdaptiveKL,target:1.0,horizon:100}"
    with pytest.raises(UserError, match=r"set method\.rl\.adaptive=null"):
        phases(folder, adaptive, private=True)
    with pytest.raises(UserError, match=r"method\.rl\.local\.steps=3: responses serve 2 steps"):
        phases(folder, "method.rl.algorithm.epochs=2", "method.rl.local.steps=3")
    assert phases(folder, "method.rl.algorithm.epochs=2", private=True)


@pytest.mark.parametrize(("algorithm", "unit"), [("rloo", "example"), ("ppo", "user")])
def test_ghost_clipping_is_refused_where_a_unit_is_several_texts(folder: Path, algorithm: str, unit: Unit) -> None:
    with pytest.raises(UserError, match=r"privacy\.local\.grad_sample=ghost: a unit of method\.\w+ is several texts"):
        phases(folder, chosen(algorithm), local=privacy(unit, "ghost"))


def test_a_reward_that_scores_texts_together_is_refused(folder: Path) -> None:
    alone = SentimentModel("none", 0, "response", 16, 1, "float32", "cpu")
    with pytest.raises(UserError, match=r"set method\.reward\.batch_size=1"):
        phases(folder, local=privacy("example"), reward=replace(alone, batch_size=2))
    assert phases(folder, local=privacy("example"), reward=alone)
