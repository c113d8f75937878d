"""The selector's phase: what a step is, what is sent and kept, and what predictions are made of."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch.nn.functional import logsigmoid

from fedalign.contribution import DELTA, WEIGHT, Contribution, State, total
from fedalign.data.pairs import PairShard, Role
from fedalign.errors import UserError
from fedalign.methods.base import Needs
from fedalign.methods.latent_prior import BANK, MIXTURE, person_id
from fedalign.methods.prototypes import LABEL
from fedalign.methods.selector import SelectorPhase
from fedalign.metrics.record import decode
from fedalign.rng import Streams

from .judgments import linear_world, random_person, shard, silo
from .selectors import ARMS, LATENT, Federation, scores, selector

PLAIN = (
    "method=fedvpl",
    "method.local.optimizer=sgd",
    "method.local.schedule=constant",
    "method.local.max_grad_norm=null",
    "method.divergence.annealing.schedule=constant",
)


def names(state: State, *stems: str) -> set[str]:
    return {name for name in state if name.startswith(stems)}


def same(one: Contribution, other: Contribution) -> bool:
    return (
        one.tensors.keys() == other.tensors.keys()
        and all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())
        and dict(one.scalars) == dict(other.scalars)
    )


@pytest.mark.parametrize(("arm", "needs"), list(zip(ARMS, (Needs.SUM, Needs.INDIVIDUAL, Needs.SUM), strict=True)))
def test_the_server_sees_single_posteriors_where_the_prior_needs_them_alone(arm: str, needs: Needs) -> None:
    assert selector(f"method={arm}").needs is needs


def test_initial_weights_and_prototypes_depend_on_the_seed_alone() -> None:
    one = selector().initial(Streams(3, "selector"), {})
    other = selector().initial(Streams(3, "elsewhere", 5, "client"), {})
    third = selector().initial(Streams(4, "selector"), {})
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(one["prototypes"], third["prototypes"])
    assert not torch.equal(one["reward.base.0.weight"], third["reward.base.0.weight"])


def test_the_initial_state_is_not_the_workspace() -> None:
    phase = selector()
    federation = Federation(phase)
    before = {name: tensor.clone() for name, tensor in federation.state.items()}
    federation.reply(1, linear_world(1, 8, 2)[0])
    assert all(torch.equal(federation.state[name], before[name]) for name in before)


def test_a_step_is_the_evidence_lower_bound_written_out() -> None:
    """VPL with N(0, I): the same episodes and noise, likelihood and divergence by hand, plain descent."""
    phase = selector(*PLAIN, "method.divergence.beta=0.3", "method.local.steps=3")
    people = [random_person("ann", 7, 0, test=2), random_person("ben", 9, 1, test=1)]
    federation, streams = Federation(phase), Streams(0, "selector", 1, "silo")
    network = phase._build(Streams(0)).reward
    weights = {f"reward.{name}": parameter for name, parameter in network.named_parameters()}
    generator = streams.torch("episodes")
    for _ in range(3):
        drawn = phase.method.episodes.draw(people, generator)
        seen, hidden = drawn.context, drawn.target
        mean, log_variance = network.posterior(seen.first, seen.second, seen.preferred)
        z = mean + log_variance.exp().sqrt() * torch.randn(mean.shape, generator=generator)
        odds = network.logits(hidden.first, hidden.second, z)
        likelihood = hidden.preferred * logsigmoid(odds) + (1 - hidden.preferred) * logsigmoid(-odds)
        normal = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
        kl = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum(-1).mean()
        loss = -likelihood.mean() + 0.3 * kl
        gradients = torch.autograd.grad(loss, list(weights.values()))
        with torch.no_grad():
            for parameter, gradient in zip(weights.values(), gradients, strict=True):
                parameter -= phase.method.local.lr * gradient
    federation.round(1, [shard(*people, client="silo")])
    for name, parameter in weights.items():
        torch.testing.assert_close(federation.state[name], parameter.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("weight", "expected"), [("uniform", 1.0), ("judgments", 14.0)])
def test_a_client_s_weight_in_the_mean(weight: str, expected: float) -> None:
    phase = selector(f"method.weight={weight}")
    client = shard(random_person("ann", 9, 0, test=2), random_person("ben", 8, 1, test=1), client="silo")
    assert Federation(phase).reply(1, client).scalars[WEIGHT] == expected


@pytest.mark.parametrize("arm", ARMS)
def test_a_contribution_is_deltas_and_what_the_prior_asks_for(arm: str) -> None:
    phase = selector(f"method={arm}")
    federation = Federation(phase)
    world = linear_world(2, 8, 2)
    reply = federation.reply(1, silo(world))
    trained = {DELTA + name for name in federation.state if name.startswith(("reward.", "prototypes"))}
    people = [person.person for each in world for person in each.people]
    asked = {
        "fedvpl": set(),
        "fedvpa": {f"{BANK}{person_id(person)}" for person in people},
        "fedvpa_sums": {f"{MIXTURE}{name}" for name in ("n", "sum", "square")},
    }[arm]
    assert reply.tensors.keys() == trained | asked
    # Nobody is named, and nothing has the size of somebody's judgments.
    assert not [name for name in reply.tensors for person in people if person in name]
    assert all(reply.tensors[name].shape == federation.state[name.removeprefix(DELTA)].shape for name in trained)
    sizes = {"fedvpl": set(), "fedvpa": {1 + 2 * LATENT}, "fedvpa_sums": {2, 2 * LATENT}}[arm]
    assert {reply.tensors[name].numel() for name in asked} == sizes


@pytest.mark.parametrize("arm", ARMS)
def test_what_is_sent_and_kept_is_nobody_s_workspace(arm: str) -> None:
    """Inside one process nothing is copied: the next client must not change what this one sent or remembers."""
    phase = selector(f"method={arm}", "method.local.optimizer=adam", "method.local.optimizer_state=persist")
    federation = Federation(phase)
    world = linear_world(3, 8, 2)
    for number in (1, 2):
        replies, kept = [], {}
        for each in world:
            replies.append(federation.reply(number, each))
            kept[each.client] = {k: t.clone() for k, t in federation.memories[each.client].items()}
            if len(replies) == 1:
                first = {name: tensor.clone() for name, tensor in replies[0].tensors.items()}
        assert all(torch.equal(replies[0].tensors[name], first[name]) for name in first)
        for client, memory in federation.memories.items():
            assert all(torch.equal(memory[name], kept[client][name]) for name in kept[client])
        federation.state = (
            phase.update_each(federation.state, replies, federation.optimizer)
            if phase.needs is Needs.INDIVIDUAL
            else phase.update(federation.state, total(replies), federation.optimizer)
        )


def two_rounds(arm: str, *overrides: str) -> tuple[Federation, list[PairShard]]:
    world = linear_world(3, 8, 2)
    federation = Federation(selector(f"method={arm}", *overrides))
    for number in (1, 2):
        federation.round(number, world)
    return federation, world


@pytest.mark.parametrize("arm", ["fedvpa", "fedvpa_sums"])
def test_mixture_weights_are_learnt_on_the_client_and_never_sent(arm: str) -> None:
    federation, world = two_rounds(arm, "method.divergence.weights=gumbel", "method.divergence.beta=1")
    for each in world:
        (person,) = each.people
        memory = federation.memories[each.client]
        assert set(memory) == {f"prior/{person.person}/ids", f"prior/{person.person}/deviations"}
        assert float(memory[f"prior/{person.person}/deviations"].abs().max()) > 0
        reply = federation.reply(3, each)
        assert not [name for name in reply.tensors if "prior/" in name or "logits" in name]
        count = len(memory[f"prior/{person.person}/ids"])
        assert count == 2
        assert not any(
            t.numel() == count and not name.startswith((DELTA, MIXTURE)) for name, t in reply.tensors.items()
        )
    # They matter: without its memory a client computes something else.
    forgetful = federation.phase.local(federation.state, world[0], Streams(0, "selector", 3, world[0].client), {})
    assert not same(forgetful, federation.reply(3, world[0]))


@pytest.mark.parametrize("change", ["weights=server", "form=standard"])
def test_there_is_nothing_to_remember_without_weights_of_one_s_own(change: str) -> None:
    federation, _ = two_rounds("fedvpa", f"method.divergence.{change}")
    assert all(memory == {} for memory in federation.memories.values())


def test_the_bank_holds_everybody_who_trained_and_their_labels() -> None:
    federation, world = two_rounds("fedvpa")
    people = {person_id(each.client) for each in world}
    assert names(federation.state, BANK) == {f"{BANK}{number}" for number in people}
    assert names(federation.state, LABEL) == {f"{LABEL}{number}" for number in people}
    assert {int(federation.state[name]) for name in names(federation.state, LABEL)} == {0, 1}


def test_a_round_without_somebody_keeps_their_last_posterior() -> None:
    federation, world = two_rounds("fedvpa")
    before = dict(federation.state)
    federation.round(3, world[:1])
    own = f"{BANK}{person_id(world[0].client)}"
    changed = {name for name in names(before, BANK) if not torch.equal(before[name], federation.state[name])}
    assert changed == {own}


def test_the_mixture_moves_by_sums() -> None:
    """Law 1: whichever workers add the clients up, the step is the same."""
    phase = selector("method=fedvpa_sums")
    world = linear_world(4, 8, 2)
    federation = Federation(phase)
    replies = [federation.reply(1, each) for each in world]
    straight = phase.update(federation.state, total(replies), federation.optimizer)
    for cut in range(1, 4):
        workers = [total(replies[:cut]), total(replies[cut:])]
        parted = phase.update(federation.state, total(workers), federation.optimizer)
        for name in straight:
            torch.testing.assert_close(straight[name], parted[name], rtol=1e-6, atol=1e-7)


def test_posteriors_are_reported_over_contexts_of_training_judgments_alone() -> None:
    phase = selector()
    federation = Federation(phase)
    person = random_person("ann", 10, 0, test=4)
    other = dataclasses.replace(person, features=person.features.clone())
    other.features[person.test] += 9.0
    assert same(federation.reply(1, shard(person)), federation.reply(1, shard(other)))
    other.features[person.train[0]] += 9.0
    assert not same(federation.reply(1, shard(person)), federation.reply(1, shard(other)))


def test_nobody_s_training_depends_on_who_else_is_in_the_process() -> None:
    world = linear_world(3, 8, 2)
    alone = Federation(selector()).reply(1, world[2])
    crowded = Federation(selector())
    for each in world[:2]:
        crowded.reply(1, each)
    assert same(crowded.reply(1, world[2]), alone)


def test_strangers_are_scored_but_never_trained_nor_counted() -> None:
    federation, world = two_rounds("fedvpa")
    (stranger,) = linear_world(1, 8, 4, seed=3, role=Role.UNSEEN)
    told = federation.phase.evaluate(federation.state, stranger, Streams(0, "selector", 2, stranger.client))
    assert {item.name.split("/")[0] for item in decode(told.scalars)} == {"unseen"}
    assert {"unseen/accuracy", "unseen/accuracy_prior_z", "unseen/kl"} <= {i.name for i in decode(told.scalars)}
    assert dict(told.tensors) == {}
    assert f"{BANK}{person_id(stranger.people[0].person)}" not in federation.state
    seen = federation.phase.evaluate(federation.state, world[0], Streams(0, "selector", 2, world[0].client))
    assert {item.name.split("/")[0] for item in decode(seen.scalars)} == {"test", "train"}
    assert float(seen.tensors["moments/n"]) == 1.0


def test_an_evaluation_leaves_no_trace_of_gradients_or_dropout() -> None:
    phase = selector("model.body.dropout=0.5")
    federation, world = Federation(phase), linear_world(2, 8, 4)
    first = scores(phase, federation.state, world)
    phase.network.train()
    assert scores(phase, federation.state, world) == first
    federation.round(1, world)
    assert all(not tensor.is_inference() for tensor in federation.state.values())


def test_active_units_and_divergence_are_means_over_people() -> None:
    federation, world = two_rounds("fedvpl")
    phase = federation.phase
    assert isinstance(phase, SelectorPhase)
    found = scores(phase, federation.state, world)
    phase.load(federation.state)
    with torch.no_grad():
        posteriors = [phase.posterior(p, p.train[:3]) for each in world for p in each.people]
    means = torch.cat([mean for mean, _ in posteriors])
    assert found["test/active_units"] == float((means.double().var(0) > 0.01).sum())
    normal = [torch.distributions.Normal(mean, (0.5 * spread).exp()) for mean, spread in posteriors]
    kl = [float(torch.distributions.kl_divergence(n, torch.distributions.Normal(0.0, 1.0)).sum()) for n in normal]
    by_group = [(kl[0] + kl[2]) / 2, kl[1]]
    assert found["test/kl"] == pytest.approx(sum(by_group) / 2, rel=1e-4)


def test_the_prior_s_mean_is_that_of_the_mixture_or_zero() -> None:
    federation, _ = two_rounds("fedvpa")
    phase = federation.phase
    assert isinstance(phase, SelectorPhase)
    rows = [federation.state[name] for name in names(federation.state, BANK)]
    judged = torch.stack([row[0] for row in rows])
    expected = (judged / judged.sum()) @ torch.stack([row[1 : 1 + LATENT] for row in rows])
    torch.testing.assert_close(phase.prior_mean(federation.state), expected)
    standard, _ = two_rounds("fedvpa", "method.divergence.form=standard")
    assert isinstance(standard.phase, SelectorPhase)
    assert names(standard.state, BANK)
    assert standard.phase.prior_mean(standard.state).tolist() == [0.0] * LATENT


def test_dropping_the_part_without_latent_changes_training_alone() -> None:
    client = linear_world(1, 8, 2)[0]
    plain, dropped = selector(), selector("model.base_dropout=0.5")
    assert not same(Federation(plain).reply(1, client), Federation(dropped).reply(1, client))
    state = plain.initial(Streams(0, "selector"), {})
    assert scores(plain, state, [client]) == scores(dropped, state, [client])


def test_training_metrics_are_reported_by_group() -> None:
    federation = Federation(selector())
    replies = [federation.reply(1, each) for each in linear_world(2, 8, 2)]
    found = {(item.name, item.group) for item in decode(total(replies).scalars)}
    kinds = ("train/loss", "train/reconstruction", "train/kl")
    assert found == set(itertools.product(kinds, ("left", "right")))


def test_an_unknown_category_is_refused_before_the_run() -> None:
    phase = selector("method.prototypes.labels=category", "method.prototypes.categories=[left,up]")
    left, right = linear_world(2, 8, 2)
    phase.check(left)
    with pytest.raises(UserError, match=r"method\.prototypes\.categories: 'right' is not among them"):
        phase.check(right)
    phase.check(dataclasses.replace(right, role=Role.UNSEEN))


def test_true_categories_reach_nobody_but_the_upper_bound() -> None:
    """A person's group and its judgments' categories change nothing else in what is learnt."""
    (client,) = linear_world(1, 8, 2)
    (person,) = client.people
    renamed = dataclasses.replace(person, group="right", categories=("right",) * len(person.categories))
    other = dataclasses.replace(client, people=(renamed,))
    for labels, alike in (("clusters", True), ("nearest", True), ("category", False)):
        phase = selector(f"method.prototypes.labels={labels}", "method.prototypes.categories=[left,right]")
        one, two = (Federation(phase).reply(1, each).tensors for each in (client, other))
        assert all(torch.equal(one[name], two[name]) for name in one) is alike
