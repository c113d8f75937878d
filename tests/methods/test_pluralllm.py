"""PluralLLM's phases: what is drawn, what a step does, what is sent and what is predicted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedalign.contribution import State, mean_delta, total
from fedalign.data.schema import GroupJudgments, Role, SurveyShard
from fedalign.errors import UserError
from fedalign.methods.base import Setting
from fedalign.methods.pluralllm import Episode, GPOPhase, PluralLLM
from fedalign.methods.question_prior import QuestionPriorPhase, base_of, contribute_answers, pack_prior
from fedalign.metrics.record import decode
from fedalign.models.gpo import GPOModel
from fedalign.rng import Streams
from tests.configs import configured

from .surveys import FEATURES, group, shard

SIZES = [2, 3, 4, 2, 5, 3, 2, 4, 3, 2]
SMALL = (
    "model.width=8",
    "model.layers=1",
    "model.heads=2",
    "model.feedforward=8",
    "method.episode.min_questions=2",
    "method.episode.max_questions=4",
    "method.local.steps=3",
    "method.local.optimizer=sgd",
    "method.local.schedule=constant",
    "method.local.lr=0.05",
    "method.local.max_grad_norm=null",
)


@pytest.fixture(scope="module")
def make() -> Callable[..., tuple[PluralLLM, GPOPhase]]:
    """Give the method under some overrides, and its network's phase."""

    def build(*overrides: str) -> tuple[PluralLLM, GPOPhase]:
        config = configured(*SMALL, *overrides)
        assert isinstance(config.method, PluralLLM)
        phase = config.method.phases(Setting(4, FEATURES, config.model, config.encoder))[-1]
        assert isinstance(phase, GPOPhase)
        return config.method, phase

    return build


Make = Callable[..., tuple[PluralLLM, GPOPhase]]


def training_shards(number: int = 3) -> list[SurveyShard]:
    return [shard(group(f"g{place}", SIZES, place, test=2)) for place in range(number)]


def prior(shards: list[SurveyShard]) -> State:
    return pack_prior(total(contribute_answers(each) for each in shards))


def test_the_prior_is_a_phase_of_its_own(make: Make) -> None:
    config = configured(*SMALL)
    setting = Setting(7, FEATURES, config.model, config.encoder)
    with_prior = make("method.prior=federated")[0].phases(setting)
    without = make("method.prior=none")[0].phases(setting)
    assert [(phase.name, phase.rounds) for phase in with_prior] == [("question_prior", 1), ("gpo", 7)]
    assert [(phase.name, phase.rounds) for phase in without] == [("gpo", 7)]


def test_initial_weights_depend_on_the_seed_alone(make: Make) -> None:
    _, phase = make("method.prior=none")
    one = phase.initial(Streams(3, "gpo", 0), {})
    other = make("method.prior=none")[1].initial(Streams(3, "elsewhere", 5, "client"), {})
    third = phase.initial(Streams(4, "gpo"), {})
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(not torch.equal(one[name], third[name]) for name in one)


def test_the_state_is_the_network_and_the_prior(make: Make) -> None:
    method, phase = make()
    config = configured(*SMALL)
    setting = Setting(4, FEATURES, config.model, config.encoder)
    assert isinstance(setting.model, GPOModel)
    known = prior(training_shards())
    state = phase.initial(Streams(0, "gpo"), {QuestionPriorPhase.name: known})
    network = {name for name, _ in setting.model.build(FEATURES, 2).named_parameters()}
    assert state.keys() == network | known.keys()
    assert method.prior == "federated"


@given(low=st.integers(1, 6), extra=st.integers(0, 6), n=st.integers(2, 20), seed=st.integers(0, 99))
def test_an_episode_has_the_sizes_that_were_asked_for(low: int, extra: int, n: int, seed: int) -> None:
    context, target = Episode(low, low + extra).draw(torch.arange(n), torch.Generator().manual_seed(seed))
    assert min(low, n - 1) <= len(context) <= low + extra
    assert 1 <= len(target) <= low + extra
    if n >= 2 * (low + extra):
        assert len(target) >= low


def test_every_size_of_an_episode_comes_up_equally_often() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = [len(Episode(2, 4).draw(torch.arange(50), generator)[0]) for _ in range(3000)]
    counts = torch.bincount(torch.tensor(sizes), minlength=6).tolist()
    assert counts[:2] == [0, 0]
    assert counts[5] == 0
    assert all(abs(count - 1000) < 5 * (3000 * 2 / 9) ** 0.5 for count in counts[2:5])


def test_bounds_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(UserError, match=r"max_questions=2 is below method\.episode\.min_questions=3"):
        Episode(3, 2)


def plain_training(phase: GPOPhase, state: State, client: SurveyShard, streams: Streams, scale: str) -> State:
    """Train by hand: the same episodes, a loss from torch.distributions, autograd and plain descent."""
    method = phase.method
    network = phase._model.build(FEATURES, 2 if method.prior == "federated" else 0)
    weights = dict(network.named_parameters())
    with torch.no_grad():
        for name, parameter in weights.items():
            parameter.copy_(state[name])
    generator = streams.torch("episodes")
    for _ in range(method.local.steps):
        terms = []
        for judgments in client.groups:
            context, target = method.episode.draw(judgments.train, generator)
            losses = point_losses(phase, network, state, client, judgments, context.tolist(), target.tolist())
            terms.append(losses.sum() if scale == "sum" else losses.mean())
        loss = torch.stack(terms).mean()
        gradients = torch.autograd.grad(loss, list(weights.values()))
        with torch.no_grad():
            for parameter, gradient in zip(weights.values(), gradients, strict=True):
                parameter -= method.local.lr * gradient
    return {name: parameter.detach() for name, parameter in weights.items()}


def point_losses(
    phase: GPOPhase,
    network: torch.nn.Module,
    state: State,
    client: SurveyShard,
    judgments: GroupJudgments,
    context: list[int],
    target: list[int],
) -> Tensor:
    """Return the loss of every target point, token by token and question by question."""
    base = base_of(state, client, judgments, phase.method.smoothing) if phase.method.prior == "federated" else None
    spans = [range(int(judgments.offsets[q]), int(judgments.offsets[q + 1])) for q in [*context, *target]]
    rows = []
    for place, span in enumerate(spans):
        for point in span:
            share = float(judgments.shares[point]) if place < len(context) else 0.0
            extra: list[float] = []
            if base is not None:
                known = float(base.shares[point])
                share = share - known if place < len(context) else 0.0
                extra = [known, float(base.support[point].log1p())]
            rows.append(torch.cat([judgments.features[point], torch.tensor([share, *extra])]))
    seen = sum(len(span) for span in spans[: len(context)])
    mean, log_std = network(torch.stack(rows), seen)
    losses, start = [], 0
    for span in spans[len(context) :]:
        own = slice(start, start + len(span))
        logits = mean[own] if base is None else base.shares[span.start : span.stop].log() + mean[own]
        normal = torch.distributions.Normal(torch.softmax(logits, 0), log_std[own].exp())
        losses.append(-normal.log_prob(judgments.shares[span.start : span.stop]))
        start = own.stop
    return torch.cat(losses)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("with_prior", ["none", "federated"])
def test_a_round_on_a_client_is_plain_training(make: Make, with_prior: str, reduction: str) -> None:
    overrides = [f"method.prior={with_prior}", f"method.loss_reduction={reduction}", "method.local.lr=0.01"]
    _, phase = make(*overrides)
    shards = training_shards()
    client = shard(group("g0", SIZES, 0, test=2), group("h", SIZES, 7), client="g0")
    shards[0] = client
    artefacts = {} if with_prior == "none" else {QuestionPriorPhase.name: prior(shards)}
    state = phase.initial(Streams(0, "gpo"), artefacts)
    before = {name: tensor.clone() for name, tensor in state.items()}
    streams = Streams(0, "gpo", 2, "g0")
    reply = phase.local(state, client, streams, {})
    expected = plain_training(phase, state, client, streams, reduction)
    for name, delta in mean_delta(reply).items():
        torch.testing.assert_close(state[name] + delta, expected[name], rtol=1e-4, atol=1e-5)
    assert {name.removeprefix("delta/") for name in reply.tensors} == expected.keys()
    assert all(torch.equal(state[name], before[name]) for name in state)


def test_the_loss_is_reported_for_every_group_of_the_client(make: Make) -> None:
    _, phase = make("method.prior=none")
    client = shard(group("g", SIZES, 0), group("h", SIZES, 1), client="both")
    reply = phase.local(phase.initial(Streams(0), {}), client, Streams(0, "gpo", 1, "both"), {})
    assert [(s.name, s.group, s.n) for s in decode(reply.scalars)] == [
        ("train/loss", "g", 1.0),
        ("train/loss", "h", 1.0),
    ]


def test_weights_of_a_client(make: Make) -> None:
    client = shard(group("g", SIZES, 0, test=3), group("h", SIZES, 1), client="both")
    found = {}
    for weight in ("uniform", "questions", "points"):
        _, phase = make("method.prior=none", f"method.weight={weight}")
        state = phase.initial(Streams(0), {})
        reply = phase.local(state, client, Streams(0, "gpo", 1, "both"), {})
        found[weight] = reply.scalars["weight"]
    generator = Streams(0, "gpo", 1, "both").torch("episodes")
    points = 0
    for judgments in client.groups:
        context, target = Episode(2, 4).draw(judgments.train, generator)
        points += sum(SIZES[q] for q in [*context.tolist(), *target.tolist()])
    assert found == {"uniform": 1.0, "questions": 7.0 + 10.0, "points": float(points)}


def test_weights_scale_what_is_sent_and_not_what_is_learnt(make: Make) -> None:
    client = training_shards()[0]
    deltas = []
    for weight in ("uniform", "questions"):
        _, phase = make("method.prior=none", f"method.weight={weight}")
        reply = phase.local(phase.initial(Streams(0), {}), client, Streams(0, "gpo", 1, "g0"), {})
        deltas.append(mean_delta(reply))
    for name, delta in deltas[0].items():
        torch.testing.assert_close(delta, deltas[1][name], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("with_prior", ["none", "federated"])
def test_predictions_are_distributions(make: Make, with_prior: str) -> None:
    _, phase = make(f"method.prior={with_prior}")
    shards = training_shards()
    artefacts = {} if with_prior == "none" else {QuestionPriorPhase.name: prior(shards)}
    state = phase.initial(Streams(0, "gpo"), artefacts)
    new = shard(group("new", SIZES, 9), role=Role.UNSEEN)
    target = torch.tensor([7, 2, 4])
    with torch.inference_mode():
        shares = phase.predict(state, new, new.groups[0], torch.tensor([0, 1]), target)
    assert bool((shares > 0).all())
    sums = [float(piece.sum()) for piece in torch.split(shares, [4, 4, 5])]
    assert sums == pytest.approx([1.0] * 3, abs=1e-9)


def test_a_network_that_says_nothing_predicts_the_prior(make: Make) -> None:
    _, phase = make("method.prior=federated")
    shards = training_shards()
    state = phase.initial(Streams(0, "gpo"), {QuestionPriorPhase.name: prior(shards)})
    for name, tensor in state.items():
        if name.startswith("head.2."):
            state[name] = torch.zeros_like(tensor)
    own = shards[1]
    base = base_of(state, own, own.groups[0], phase.method.smoothing)
    with torch.inference_mode():
        shares = phase.predict(state, own, own.groups[0], torch.tensor([0, 1]), torch.tensor([3, 5]))
    expected = torch.cat([base.shares[9:11], base.shares[16:19]])
    torch.testing.assert_close(shares.float(), expected)


def test_training_helps(make: Make) -> None:
    """Answers that a feature gives away are learnt within a few rounds."""
    _, phase = make("method.prior=none", "method.local.optimizer=adam", "method.local.steps=30")
    judgments = group("g", [2] * 12, 0)
    told = torch.softmax(3 * judgments.features[:, 0].view(-1, 2), 1).flatten()
    client = shard(dataclasses.replace(judgments, shares=told))
    state = phase.initial(Streams(0), {})
    errors = []
    for number in (1, 2, 3):
        with torch.inference_mode():
            shares = phase.predict(state, client, client.groups[0], torch.arange(4), torch.arange(4, 12))
        errors.append(float((shares - told[8:]).abs().mean()))
        reply = phase.local(state, client, Streams(0, "gpo", number, "g"), {})
        state = {name: (state[name] + delta).float() for name, delta in mean_delta(reply).items()}
    assert errors[-1] < 0.8 * errors[0]
