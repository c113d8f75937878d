"""Reward models under local privacy: what is protected, and what a client sends."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedalign.contribution import DELTA, WEIGHT, State
from fedalign.data.pairs import Judgments
from fedalign.errors import UserError
from fedalign.methods.base import Setting
from fedalign.methods.local_training import trainable
from fedalign.methods.reward_heads import RewardHeadsMethod, RewardPhase
from fedalign.methods.reward_units import EachJudgment, EachPerson
from fedalign.objectives.preference import preference_nll
from fedalign.privacy.local import DPSGD, GradSample, LocalPrivacy, Unit
from fedalign.privacy.noise import SeededNoise
from fedalign.rng import Streams
from tests.configs import configured

from .judgments import FEATURES, random_person, shard, turned

SMALL = (
    "model.body.width=8",
    "model.body.dropout=0",
    "model.width=8",
    "method.episodes.count=1",
    "method.episodes.min_context=2",
    "method.episodes.max_context=2",
    "method.episodes.targets=4",
    "method.local.steps=1",
    "method.local.lr=0.5",
    "method.local.schedule=constant",
    "method.local.max_grad_norm=null",
)
PLACE = Streams(0, "reward", 1, "silo")
MODES: tuple[GradSample, ...] = ("loop", "hooks", "functorch")


def privacy(unit: Unit = "example", noise: float = 0.0, clip: float = 1e6, **changes: object) -> LocalPrivacy:
    settings = DPSGD(unit, clip, 1.0, "hooks")
    return LocalPrivacy(dataclasses.replace(settings, **changes), noise, SeededNoise())


def phase(chosen: LocalPrivacy | None, *overrides: str, arm: str = "fedavg_bt") -> RewardPhase:
    config = configured(f"method={arm}", *SMALL, *overrides)
    assert isinstance(config.method, RewardHeadsMethod)
    setting = Setting(4, FEATURES, config.model, config.encoder, local_privacy=chosen)
    (found,) = config.method.phases(setting)
    assert isinstance(found, RewardPhase)
    return found


def sent(chosen: LocalPrivacy | None, people: Sequence[Judgments], *overrides: str) -> tuple[State, dict[str, float]]:
    """Return the tensors and the scalars of a first contribution."""
    used = phase(chosen, *overrides)
    state = used.initial(Streams(0), {})
    contribution = used.local(state, shard(*people, client="silo"), PLACE, {})
    return dict(contribution.tensors), dict(contribution.scalars)


def silo() -> list[Judgments]:
    """Return three people with six training judgments each, which is what a step's episode holds."""
    return [random_person(f"p{place}", 6, place) for place in range(3)]


@pytest.mark.parametrize("head", ["reward", "selector"])
@pytest.mark.parametrize("mode", MODES)
def test_without_noise_and_clipping_a_step_on_examples_is_the_step_on_their_mean(mode: GradSample, head: str) -> None:
    """Law 4."""
    chosen = privacy(grad_sample=mode)
    tensors, scalars = sent(chosen, silo(), f"model.head={head}")
    plain = phase(None, f"model.head={head}")
    state = plain.initial(Streams(0), {})
    plain.load(state)
    units = EachJudgment(plain.network, silo(), chosen.draws(PLACE))
    losses = units.losses(torch.arange(18), 0)
    losses.mean().backward()
    for name, parameter in trainable(plain.network).items():
        assert parameter.grad is not None
        torch.testing.assert_close(tensors[DELTA + name], -0.5 * parameter.grad, rtol=1e-4, atol=1e-6)
    assert scalars == {WEIGHT: 1.0}
    if head == "reward":
        features = torch.cat([person.features for person in silo()])
        logits = plain.network.logits(features[:, 0], features[:, 1])[0]
        torch.testing.assert_close(losses, preference_nll(logits, torch.ones(18)))


@pytest.mark.parametrize("mode", MODES)
def test_without_noise_and_clipping_a_step_on_users_is_plain_training_s(mode: GradSample) -> None:
    """Law 4: a person's episode holds all of their judgments here, so that nothing hangs on what is drawn."""
    tensors, scalars = sent(privacy("user", grad_sample=mode), silo())
    plain, _ = sent(None, silo(), "method.episodes.count=3")
    assert tensors.keys() == plain.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, plain[name], rtol=1e-4, atol=1e-6)
    assert scalars == {WEIGHT: 1.0}


@pytest.mark.parametrize("unit", ["example", "user"])
def test_ways_to_find_gradients_agree_where_clipping_acts(unit: Unit) -> None:
    people = [random_person(f"p{place}", 4 + 3 * place, place) for place in range(3)]
    by_mode = [sent(privacy(unit, clip=0.05, grad_sample=mode), people)[0] for mode in MODES]
    for found in by_mode[1:]:
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, by_mode[0][name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("unit", ["example", "user"])
def test_a_unit_moves_what_is_sent_by_no_more_than_the_clip(unit: Unit) -> None:
    people = silo()
    other = [*people[:2], turned(people[2], torch.tensor([0]) if unit == "example" else torch.arange(6))]
    one, two = (sent(privacy(unit, clip=0.01), each)[0] for each in (people, other))
    distance = torch.cat([(one[name] - two[name]).flatten() for name in one]).norm()
    units = 18 if unit == "example" else 3
    # A unit that is replaced goes and comes: twice the bound, at a learning rate of 1/2.
    assert 0 < float(distance) <= 2 * 0.01 / units * 0.5 * (1 + 1e-4)


def test_another_person_s_judgments_do_not_reach_a_person_s_loss() -> None:
    used = phase(privacy("user"))
    used.load(used.initial(Streams(0), {}))
    people = silo()
    others = [turned(people[0], torch.arange(6)), people[1], random_person("p2", 2, 9)]
    plan = used.method.episodes
    alone = EachPerson(used.network, people, plan, PLACE).losses(torch.tensor([1]), 0)
    for each in (people, others):
        among = EachPerson(used.network, each, plan, PLACE).losses(torch.arange(3), 0)
        assert torch.equal(among[1:2], alone)


def test_a_judgment_s_loss_does_not_depend_on_who_is_asked_with_it() -> None:
    """The order of its responses is drawn by its number; a head that reads both together would show another one."""
    used = phase(privacy(), "model.head=selector")
    used.load(used.initial(Streams(0), {}))
    units = EachJudgment(used.network, silo(), PLACE)
    together = units.losses(torch.arange(18), 2)
    for unit in (0, 7, 17):
        torch.testing.assert_close(units.losses(torch.tensor([unit]), 2)[0], together[unit], rtol=1e-6, atol=0)
    assert not torch.equal(units.losses(torch.arange(18), 3), together)


def test_fewer_judgments_than_rows_weigh_as_much_in_all() -> None:
    used = phase(privacy("user"))
    used.load(used.initial(Streams(0), {}))
    person = random_person("p", 3, 0)
    logits = used.network.logits(person.features[:, 0], person.features[:, 1])[0]
    (loss,) = EachPerson(used.network, [person], used.method.episodes, PLACE).losses(torch.tensor([0]), 0)
    torch.testing.assert_close(loss, preference_nll(logits, torch.ones(3)).mean())


def test_ties_stay_ties() -> None:
    used = phase(privacy())
    used.load(used.initial(Streams(0), {}))
    person = dataclasses.replace(random_person("p", 2, 0), tie=torch.tensor([False, True]))
    losses = EachJudgment(used.network, [person], PLACE).losses(torch.arange(2), 0)
    logits = used.network.logits(person.features[:, 0], person.features[:, 1])[0]
    torch.testing.assert_close(losses, preference_nll(logits, torch.tensor([1.0, 0.5])))


@pytest.mark.parametrize("unit", ["example", "user"])
def test_noise_is_there_and_another_client_s_is_another(unit: Unit) -> None:
    used = phase(privacy(unit, noise=1.0, clip=0.1))
    state = used.initial(Streams(0), {})
    found: list[Tensor] = []
    for client in ("silo", "other"):
        place = PLACE.at(client=client)
        tensors = used.local(state, shard(*silo(), client=client), place, {}).tensors
        found.append(torch.cat([tensor.flatten() for tensor in tensors.values()]))
    exact = torch.cat([t.flatten() for t in sent(privacy(unit, clip=0.1), silo())[0].values()])
    noise = torch.stack(found) - exact
    units = 18 if unit == "example" else 3
    # Learning rate times z C / (q n), from 2 x 192 numbers.
    assert float(noise.std()) == pytest.approx(0.5 * 0.1 / units, rel=0.15)
    assert abs(float(torch.corrcoef(noise)[0, 1])) < 0.3


@pytest.mark.parametrize("mode", MODES)
def test_every_adapter_changes(tmp_path: Path, mode: GradSample) -> None:
    """Mistake 26, on a transformer: without noise, so that only gradients can have moved them."""
    from tests.language_models import random_model

    folder = random_model("gpt2", tmp_path)
    chosen = privacy("user", clip=1.0, grad_sample=mode)
    lora = (
        "model=reward_lora",
        f"model.body.model={folder}",
        "model.body.rank=2",
        "model.body.dropout=0.1",
        "model.body.device=cpu",
        "model.width=8",
        "encoder=tokens",
        f"encoder.model={folder}",
    )
    config = configured("method=fedavg_bt", *SMALL[3:], *lora, "method.local.steps=2")
    assert isinstance(config.method, RewardHeadsMethod)
    (used,) = config.method.phases(Setting(2, 6, config.model, config.encoder, local_privacy=chosen))
    generator = torch.Generator().manual_seed(0)
    people = [
        dataclasses.replace(person, features=torch.randint(0, 20, (6, 2, 6), generator=generator).float())
        for person in silo()
    ]
    state = used.initial(Streams(0), {})
    changes = used.local(state, shard(*people, client="silo"), PLACE, {}).tensors
    still = {name for name, change in changes.items() if not bool(change.any())}
    # The last bias cancels between the two responses.
    assert still == {"delta/heads.0.score.2.bias"}
    assert any("lora_A" in name for name in changes)


@pytest.mark.parametrize(
    ("arm", "overrides", "message"),
    [
        ("fedem", (), r"method\.assignment=.* with method\.heads=2 .*use method=fedavg_bt"),
        ("pal", (), r"method\.assignment=Blend"),
        ("fedbiscuit", (), r"method\.assignment="),
        ("fedavg_bt", ("method.heads=2",), r"method\.heads=2"),
        ("fedavg_bt", ("method.weight=judgments",), r"set method\.weight=uniform"),
        ("fedavg_bt", ("method.local.max_grad_norm=1.0",), r"set method\.local\.max_grad_norm=null"),
    ],
)
def test_what_would_pass_the_noise_is_refused(arm: str, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        phase(privacy(), *overrides, arm=arm)


def test_ghost_clipping_cannot_serve_pairs() -> None:
    with pytest.raises(UserError, match=r"grad_sample=ghost: .*set hooks or loop"):
        phase(privacy(grad_sample="ghost"))


def test_without_local_privacy_nothing_is_refused() -> None:
    assert phase(None, "method.weight=judgments", "method.local.max_grad_norm=1.0").local_steps == 1
