"""Law 5: what predicts a target never contains the target."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedalign.config import resolve, to_json
from fedalign.contribution import State, total
from fedalign.data.schema import GroupJudgments, Role, SurveyShard
from fedalign.federation.site import Site
from fedalign.methods.pluralllm import Episode, GPOPhase
from fedalign.methods.question_prior import base_of, contribute_answers, pack_prior
from fedalign.methods.survey import SurveyPhase, points_of
from fedalign.rng import Streams
from fedalign.site import open_site

from .conftest import TINY


@pytest.fixture
def site() -> Site:
    return open_site(to_json(resolve([*TINY, "seed=3"])), {})


def shards(site: Site, role: Role) -> list[SurveyShard]:
    return [site.data.shard(client.name) for client in site.data.clients if client.role is role]


def trained(site: Site) -> tuple[GPOPhase, State]:
    """Return the network's phase and a state with a prior and weights that are not all alike."""
    prior = pack_prior(total(contribute_answers(shard) for shard in shards(site, Role.TRAIN)))
    phase = site.phases[-1]
    assert isinstance(phase, GPOPhase)
    state = phase.initial(Streams(3, "gpo"), {"question_prior": prior})
    # A few rounds' worth of noise: fresh weights hardly look at the context.
    generator = Streams(3).torch("noise")
    for name, tensor in state.items():
        if not name.startswith("prior."):
            state[name] = tensor + 0.3 * torch.randn(tensor.shape, generator=generator)
    return phase, state


def with_shares(shard: SurveyShard, questions: torch.Tensor) -> SurveyShard:
    """Return the shard with other answers to some questions: the shares of each are reversed and mixed."""
    group = shard.groups[0]
    shares = group.shares.clone()
    for question in questions.tolist():
        span = slice(int(group.offsets[question]), int(group.offsets[question + 1]))
        flipped = shares[span].flip(0) + 0.3 * torch.arange(1, span.stop - span.start + 1)
        shares[span] = flipped / flipped.sum()
    return dataclasses.replace(shard, groups=(dataclasses.replace(group, shares=shares),))


@pytest.mark.parametrize("role", [Role.TRAIN, Role.UNSEEN])
def test_a_target_s_answers_do_not_move_its_prediction(site: Site, role: Role) -> None:
    phase, state = trained(site)
    for shard in shards(site, role):
        group = shard.groups[0]
        context, target = group.train[:5], group.train[5:]
        if role is Role.TRAIN:
            # The federation learns from the changed answers too: the prior must give them back out.
            changed = with_shares(shard, target)
            others = [s for s in shards(site, Role.TRAIN) if s.client != shard.client]
            told = pack_prior(total(contribute_answers(s) for s in [*others, changed]))
            other_state = {**state, **told}
        else:
            changed, other_state = with_shares(shard, target), state
        before = phase.predict(state, shard, group, context, target)
        after = phase.predict(other_state, changed, changed.groups[0], context, target)
        torch.testing.assert_close(before, after, rtol=0, atol=1e-5)


def test_context_answers_do_move_predictions(site: Site) -> None:
    phase, state = trained(site)
    shard = shards(site, Role.UNSEEN)[0]
    context, target = shard.groups[0].train[:5], shard.groups[0].train[5:]
    changed = with_shares(shard, context)
    before = phase.predict(state, shard, shard.groups[0], context, target)
    after = phase.predict(state, changed, changed.groups[0], context, target)
    assert float((before - after).detach().abs().max()) > 1e-4


@given(n=st.integers(2, 40), low=st.integers(1, 30), width=st.integers(0, 30), seed=st.integers(0, 999))
def test_episodes_are_disjoint_and_within_what_is_available(n: int, low: int, width: int, seed: int) -> None:
    available = torch.arange(100, 100 + n)
    context, target = Episode(low, low + width).draw(available, torch.Generator().manual_seed(seed))
    assert len(context) >= 1
    assert len(target) >= 1
    assert not set(context.tolist()) & set(target.tolist())
    assert set(context.tolist()) | set(target.tolist()) <= set(available.tolist())


def test_evaluation_never_shows_a_target(site: Site) -> None:
    phase = site.phases[-1]
    assert isinstance(phase, SurveyPhase)
    for shard in [*shards(site, Role.TRAIN), *shards(site, Role.UNSEEN)]:
        for population, context, target in phase._draws(shard.groups[0], shard.role, Streams(3)):
            assert not set(context.tolist()) & set(target.tolist())
            if population == "test":
                assert set(target.tolist()) == set(shard.groups[0].test.tolist())


def test_held_out_answers_never_leave_the_client(site: Site) -> None:
    for shard in shards(site, Role.TRAIN):
        group = shard.groups[0]
        assert len(group.test)
        sent = {name.removeprefix("question/") for name in contribute_answers(shard).tensors}
        assert sent == {group.question_ids[q] for q in group.train.tolist()}
        phase, state = trained(site)
        told = phase.local(state, shard, Streams(3, "gpo", 1, shard.client), {})
        changed = with_shares(shard, group.test)
        again = phase.local(state, changed, Streams(3, "gpo", 1, shard.client), {})
        assert all(torch.equal(told.tensors[name], again.tensors[name]) for name in told.tensors)


def test_leave_one_out_equals_a_prior_that_never_saw_the_client(site: Site) -> None:
    clients = shards(site, Role.TRAIN)
    whole = pack_prior(total(contribute_answers(shard) for shard in clients))
    for shard in clients:
        without = pack_prior(total(contribute_answers(other) for other in clients if other.client != shard.client))
        group: GroupJudgments = shard.groups[0]
        own = points_of(group, group.train).index
        taken_out = base_of(whole, shard, group, smoothing=0.5)
        never_in = base_of(without, shard, group, smoothing=0.5)
        torch.testing.assert_close(taken_out.shares[own], never_in.shares[own], rtol=0, atol=1e-6)
        torch.testing.assert_close(taken_out.support, never_in.support, rtol=0, atol=0)
