"""The variational selector under local privacy: whole people are protected, and nothing else is sent."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fedalign.contribution import DELTA, WEIGHT
from fedalign.data.pairs import Judgments
from fedalign.errors import UserError
from fedalign.methods.base import Setting
from fedalign.methods.local_training import trainable
from fedalign.methods.selector import SelectorPhase
from fedalign.methods.selector_units import EachLatent
from fedalign.privacy.local import DPSGD, LocalPrivacy
from fedalign.privacy.noise import SeededNoise
from fedalign.rng import Streams

from .judgments import FEATURES, random_person, shard, turned
from .selectors import method, settings

PRIVATE = (
    "method=fedvpl",
    "method.collect_latents=false",
    "method.local.max_grad_norm=null",
    "method.local.schedule=constant",
    "method.local.steps=1",
)
NEAREST = (
    "method=fedvpa",
    "method.prior={_target_: fedalign.methods.latent_prior.StandardPrior}",
    "method.prototypes.labels=nearest",
    *PRIVATE[1:],
)
PLACE = Streams(0, "selector", 1, "silo")


def privacy(clip: float = 1e6, noise: float = 0.0, **changes: object) -> LocalPrivacy:
    return LocalPrivacy(dataclasses.replace(DPSGD("user", clip, 1.0, "loop"), **changes), noise, SeededNoise())


def phase(chosen: LocalPrivacy | None, *overrides: str) -> SelectorPhase:
    config = settings(*overrides)
    setting = Setting(4, FEATURES, config.model, config.encoder, local_privacy=chosen)
    first = method(*overrides).phases(setting)[0]
    assert isinstance(first, SelectorPhase)
    return first


def people(sizes: tuple[int, ...] = (5, 7, 9)) -> list[Judgments]:
    return [random_person(f"p{place}", size, place) for place, size in enumerate(sizes)]


@pytest.mark.parametrize("arm", [PRIVATE, NEAREST])
def test_without_noise_and_clipping_it_is_the_step_on_the_mean_over_people(arm: tuple[str, ...]) -> None:
    """Law 4."""
    used = phase(privacy(), *arm)
    state = used.initial(Streams(0), {})
    sent = used.local(state, shard(*people(), client="silo"), PLACE, {})
    plain = phase(None, *arm)
    plain.load(state)
    EachLatent(plain, state, people(), privacy().draws(PLACE)).losses(torch.arange(3), 0).mean().backward()
    assert sent.tensors.keys() == {DELTA + name for name in trainable(plain.network)}
    for name, parameter in trainable(plain.network).items():
        assert parameter.grad is not None
        torch.testing.assert_close(sent.tensors[DELTA + name], -0.05 * parameter.grad, rtol=1e-4, atol=1e-7)
    assert sent.scalars == {WEIGHT: 1.0}


def test_a_person_s_loss_is_that_of_plain_training_alone() -> None:
    """Plain training of a client with one person, on the same draws."""
    used = phase(None, *PRIVATE, "method.divergence.annealing.schedule=constant")
    state = used.initial(Streams(0), {})
    (person,) = people((6,))
    sent = used.local(state, shard(person, client="silo"), PLACE, {})
    used.load(state)
    used.network.zero_grad()
    used.person_loss(state, person, 0.0, PLACE.torch("episodes")).backward()
    for name, parameter in trainable(used.network).items():
        assert parameter.grad is not None
        torch.testing.assert_close(sent.tensors[DELTA + name], -0.05 * parameter.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("arm", [PRIVATE, NEAREST])
def test_other_people_s_judgments_do_not_reach_a_person_s_loss(arm: tuple[str, ...]) -> None:
    """Not their number either: contexts are as large as one's own judgments allow. Prototypes tie nobody together."""
    used = phase(privacy(), *arm)
    state = used.initial(Streams(0), {})
    used.load(state)
    mine = people()
    others = [turned(mine[0], torch.arange(5)), mine[1], random_person("p2", 2, 9)]
    found = [EachLatent(used, state, each, PLACE).losses(torch.arange(3), 0) for each in (mine, others)]
    assert torch.equal(found[0][1], found[1][1])
    assert not torch.equal(found[0][0], found[1][0])


def test_a_person_moves_what_is_sent_by_no_more_than_the_clip() -> None:
    used = phase(privacy(clip=0.01), *PRIVATE)
    state = used.initial(Streams(0), {})
    mine = people()
    other = [*mine[:2], turned(mine[2], torch.arange(9))]
    one, two = (used.local(state, shard(*each, client="silo"), PLACE, {}).tensors for each in (mine, other))
    distance = torch.cat([(one[name] - two[name]).flatten() for name in one]).norm()
    assert 0 < float(distance) <= 2 * 0.01 / 3 * 0.05 * (1 + 1e-4)


@pytest.mark.parametrize(
    ("overrides", "changes", "message"),
    [
        (("method.collect_latents=true",), {}, r"set it to false"),
        (("method.weight=judgments",), {}, r"set method\.weight=uniform"),
        (("method.local.max_grad_norm=1.0",), {}, r"set method\.local\.max_grad_norm=null"),
        ((), {"unit": "example"}, r"set privacy\.local\.unit=user"),
        ((), {"grad_sample": "hooks"}, r"set privacy\.local\.grad_sample=loop"),
        ((), {"grad_sample": "ghost"}, r"set privacy\.local\.grad_sample=loop"),
    ],
)
def test_what_would_pass_the_noise_is_refused(
    overrides: tuple[str, ...], changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        phase(privacy(**changes), *PRIVATE, *overrides)


@pytest.mark.parametrize("arm", ["fedvpa", "fedvpa_sums"])
def test_priors_that_are_told_of_posteriors_are_refused(arm: str) -> None:
    with pytest.raises(UserError, match=r"method\.prior=.*Prior .*use method=fedvpl"):
        phase(privacy(), f"method={arm}", *PRIVATE[1:])
