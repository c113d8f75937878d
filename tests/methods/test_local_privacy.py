"""Local training with DP-SGD, and PluralLLM under it."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from fedalign.contribution import DELTA, WEIGHT, State
from fedalign.data.schema import GroupJudgments
from fedalign.errors import UserError
from fedalign.methods.base import Setting
from fedalign.methods.local_training import LocalTraining, train, train_privately
from fedalign.methods.pluralllm import GPOPhase, PluralLLM
from fedalign.privacy.dp_sgd import UnitLosses
from fedalign.privacy.local import DPSGD, LocalPrivacy
from fedalign.privacy.noise import SeededNoise, SystemNoise
from fedalign.rng import Streams
from tests.configs import configured

from .surveys import FEATURES, group, shard

PLACE = Streams(0, "gpo", 1, "client")
SIZES = [2, 3, 4, 2, 5, 3]
SMALL = (
    "model.width=8",
    "model.layers=1",
    "model.heads=2",
    "model.feedforward=8",
    "method.prior=none",
    "method.episode.min_questions=2",
    "method.episode.max_questions=3",
    "method.local.steps=1",
    "method.local.optimizer=sgd",
    "method.local.schedule=constant",
    "method.local.lr=0.05",
)
SETTINGS = LocalTraining(
    steps=4, optimizer="sgd", lr=0.1, schedule="constant", period=5, final_lr=0.1, optimizer_state="reset",
    proximal_mu=0.0, max_grad_norm=None,
)  # fmt: skip


def privacy(rate: float = 1.0, noise: float = 0.0, clip: float = 1e6, **changes: object) -> LocalPrivacy:
    return LocalPrivacy(dataclasses.replace(DPSGD("user", clip, rate, "loop"), **changes), noise, SeededNoise())


class Regression(UnitLosses):
    """Squared errors of rows, which differ from step to step."""

    units = 5

    def __init__(self, network: nn.Module) -> None:
        generator = torch.Generator().manual_seed(1)
        self.network = network
        self.x = torch.randn(10, self.units, 3, generator=generator)

    def losses(self, chosen: Tensor, step: int) -> Tensor:
        return (self.network(self.x[step, chosen]).squeeze(1) - 1).square()


def world() -> tuple[nn.Module, State]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        return network, {name: torch.randn_like(p) for name, p in network.named_parameters()}


def privately(settings: LocalTraining, chosen: LocalPrivacy, memory: dict[str, Tensor] | None = None) -> State:
    network, state = world()
    moments = {} if memory is None else memory
    train_privately(network, state, Regression(network), settings, chosen, 0, settings.steps, moments, PLACE)
    return {name: p.detach().clone() for name, p in network.named_parameters()}


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("mu", [0.0, 0.7])
@pytest.mark.parametrize("mode", ["loop", "hooks"])
def test_without_noise_and_clipping_it_is_plain_training_on_the_mean(optimizer: str, mu: float, mode: str) -> None:
    """Law 4, over several steps, with schedule and proximal term; Adam's moments are kept alike."""
    settings = dataclasses.replace(
        SETTINGS, optimizer=optimizer, proximal_mu=mu, schedule="cosine", optimizer_state="persist"
    )
    network, state = world()
    units, kept, remembered = Regression(network), {}, {}
    everyone = torch.arange(units.units)
    train(network, state, lambda step: units.losses(everyone, step).mean(), settings, 0, 4, kept)
    found = privately(settings, privacy(grad_sample=mode), remembered)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(found[name], parameter.detach(), rtol=1e-4, atol=1e-6)
    assert kept.keys() == remembered.keys()
    assert bool(kept) == (optimizer == "adam")


def test_the_proximal_term_is_neither_clipped_nor_divided() -> None:
    """Units without a gradient of their own: what is left is the pull, as it is after the first step's noise."""
    chosen = privacy(noise=0.5, clip=0.2)
    free = privately(dataclasses.replace(SETTINGS, steps=2), chosen)
    pulled = privately(dataclasses.replace(SETTINGS, steps=2, proximal_mu=1e-4), chosen)
    one = privately(dataclasses.replace(SETTINGS, steps=1), chosen)
    _, state = world()
    for name in free:
        expected = free[name] - 0.1 * 1e-4 * (one[name] - state[name])
        torch.testing.assert_close(pulled[name], expected, rtol=0, atol=2e-6)


def test_a_second_bound_is_refused() -> None:
    with pytest.raises(UserError, match=r"privacy\.local\.clip; set method\.local\.max_grad_norm=null"):
        privately(dataclasses.replace(SETTINGS, max_grad_norm=1.0), privacy())


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_a_tensor_that_its_gradient_does_not_move_is_an_error(noise: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mistake 26: an optimiser that holds other tensors than the network's, as after a move to another device."""
    real = LocalTraining.build_optimizer
    monkeypatch.setattr(LocalTraining, "build_optimizer", lambda self, parameters: real(self, parameters[:-1]))
    with pytest.raises(RuntimeError, match=r"2\.bias has a gradient, but did not change"):
        privately(SETTINGS, privacy(noise=noise, clip=1.0))


def test_nothing_is_asked_of_tensors_without_a_gradient() -> None:
    """No batch came, and nothing is added: that nothing moved is right."""
    _, state = world()
    found = privately(SETTINGS, privacy(rate=1e-9))
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_a_unit_that_is_not_finite_does_not_stop_training() -> None:
    """An error would tell of the data."""
    network, state = world()
    units = Regression(network)
    units.x[:, 2] = math.nan
    train_privately(network, state, units, SETTINGS, privacy(clip=1.0), 0, 4, {}, PLACE)
    assert all(bool(p.isfinite().all()) for p in network.parameters())


def test_weights_beyond_all_bounds_say_what_to_do() -> None:
    with pytest.raises(FloatingPointError, match=r"lower the lr of local training"):
        privately(dataclasses.replace(SETTINGS, lr=1e38), privacy(noise=10.0, clip=1e5))


def gpo(chosen: LocalPrivacy | None, *overrides: str) -> GPOPhase:
    config = configured(*SMALL, *overrides)
    assert isinstance(config.method, PluralLLM)
    setting = Setting(4, FEATURES, config.model, config.encoder, local_privacy=chosen)
    phase = config.method.phases(setting)[-1]
    assert isinstance(phase, GPOPhase)
    return phase


def groups() -> list[GroupJudgments]:
    return [group(f"g{place}", SIZES, place) for place in range(3)]


def test_pluralllm_without_noise_is_the_step_on_the_mean_over_groups() -> None:
    phase = gpo(privacy())
    state = phase.initial(Streams(0), {})
    sent = phase.local(state, shard(*groups(), client="client"), PLACE, {})
    losses = []
    for judgments in groups():
        generator = privacy().draws(PLACE).torch(f"dp_sgd/0/{judgments.group}")
        context, target = phase.method.episode.draw(judgments.train, generator)
        losses.append(phase.episode_loss(judgments, None, context, target))
    network = phase._network
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(state[name])
    losses = [phase.episode_loss(j, None, *_drawn(phase, j)) for j in groups()]
    gradients = torch.autograd.grad(torch.stack(losses).mean(), list(network.parameters()))
    for (name, _), gradient in zip(network.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(sent.tensors[DELTA + name], -0.05 * gradient, rtol=1e-4, atol=1e-7)
    assert len(sent.tensors) == len(gradients)
    assert sent.scalars == {WEIGHT: 1.0}


def _drawn(phase: GPOPhase, judgments: GroupJudgments) -> tuple[Tensor, Tensor]:
    generator = privacy().draws(PLACE).torch(f"dp_sgd/0/{judgments.group}")
    return phase.method.episode.draw(judgments.train, generator)


def test_a_group_moves_what_is_sent_by_no_more_than_the_clip() -> None:
    phase = gpo(privacy(clip=0.01))
    state = phase.initial(Streams(0), {})
    other = [*groups()[:2], group("another", [4, 4, 2], 9)]
    one, two = (phase.local(state, shard(*each, client="client"), PLACE, {}).tensors for each in (groups(), other))
    distance = torch.cat([(one[name] - two[name]).flatten() for name in one]).norm()
    assert 0 < float(distance) <= 2 * 0.01 / 3 * 0.05 * (1 + 1e-4)


@pytest.mark.parametrize(
    ("overrides", "changes", "message"),
    [
        (("method.prior=federated",), {}, r"set method\.prior=none"),
        (("method.weight=points",), {}, r"set method\.weight=uniform"),
        (("method.local.max_grad_norm=1.0",), {}, r"set method\.local\.max_grad_norm=null"),
        ((), {"unit": "example"}, r"set privacy\.local\.unit=user"),
        ((), {"grad_sample": "hooks"}, r"set privacy\.local\.grad_sample=loop"),
    ],
)
def test_what_pluralllm_cannot_protect_is_refused(
    overrides: tuple[str, ...], changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        gpo(privacy(**changes), *overrides)


def test_what_units_draw_is_as_secret_as_the_noise() -> None:
    """Masks and orders that anyone could compute would tell by whose places they went to."""
    own = privacy()
    secret = dataclasses.replace(own, randomness=SystemNoise())
    assert own.draws(PLACE) == own.draws(PLACE) != own.draws(PLACE.at(round=PLACE.round + 1))
    assert len({secret.draws(PLACE).seed for _ in range(9)} | {PLACE.seed}) == 10
