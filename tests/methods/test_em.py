"""A round of EM: what clients add up, and what the server makes of it."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from fedalign.contribution import DELTA, WEIGHT, State, total
from fedalign.data.federated import Role
from fedalign.data.rankings import RankingShard
from fedalign.errors import RunFailed, UserError
from fedalign.methods.collapse import ALARMS, LOW, RESTARTS
from fedalign.methods.em import MASS, SHARES, EMPhase
from fedalign.methods.start_phase import CENTRES
from fedalign.methods.type_model import PRIOR, TYPES, type_of
from fedalign.objectives.plackett_luce import orders_of, ranking_log_likelihood
from fedalign.rng import Streams

from .ranking_worlds import Rounds, clustered, em, method_of, same, scores, shard, silo, starting, world

SHARP = ("method.assignment.temper=1", "method.assignment.temper_rounds=1")


def weight_of(state: State, number: int) -> Tensor:
    return type_of(state, number)["score.weight"]


def likelihoods(state: State, client: RankingShard, index: Tensor) -> Tensor:
    """Return log-likelihoods, shape (K, n), by plain products."""
    orders = orders_of(client.tiers[index])
    return torch.stack(
        [ranking_log_likelihood(client.features[index] @ weight_of(state, k)[0], orders) for k in range(2)]
    )


def expected_shares(phase: EMPhase, state: State, client: RankingShard, seed: int, number: int) -> Tensor:
    """Return the posterior of a client with one annotator, at temper 1."""
    told = method_of(phase).folds.assessing(client, seed, number)
    return torch.softmax(state[PRIOR].double().log() + likelihoods(state, client, told).double().sum(1), 0)


def test_a_contribution_is_steps_on_one_half_times_posteriors_of_the_other() -> None:
    phase, client = em(*SHARP), shard()
    rounds = Rounds(phase)
    state, reply = rounds.state, rounds.reply(1, client)
    shares = expected_shares(phase, state, client, 0, 1)
    torch.testing.assert_close(reply.tensors[SHARES].double(), shares, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(reply.tensors[MASS].double(), shares, atol=1e-6, rtol=1e-5)
    assert reply.scalars[WEIGHT] == 1.0
    fitted = method_of(phase).folds.fitting(client, 0, 1)
    orders = orders_of(client.tiers[fitted])
    for number in (0, 1):
        weight = weight_of(state, number)[0].clone().requires_grad_()
        loss = -ranking_log_likelihood(client.features[fitted] @ weight, orders).mean()
        (gradient,) = torch.autograd.grad(loss, weight)
        delta = reply.tensors[f"{DELTA}{TYPES}{number}.score.weight"][0].double()
        torch.testing.assert_close(delta, -0.5 * gradient.double() * shares[number], atol=1e-6, rtol=1e-4)


def test_labels_of_the_half_that_tells_types_reach_training_through_the_shares_alone() -> None:
    phase, client = em("method.least_share=0"), shard()
    told = method_of(phase).folds.assessing(client, 0, 1)
    tiers = client.tiers.clone()
    tiers[told] = client.features[told].matmul(torch.tensor([2.0, 0.0, 0.5])).argsort(1).argsort(1)
    changed = dataclasses.replace(client, tiers=tiers)
    one, other = (Rounds(phase).reply(1, each) for each in (client, changed))
    assert float((one.tensors[MASS] - other.tensors[MASS]).abs().max()) > 1e-2
    for number in (0, 1):
        name = f"{DELTA}{TYPES}{number}.score.weight"
        torch.testing.assert_close(
            one.tensors[name] / one.tensors[MASS][number], other.tensors[name] / other.tensors[MASS][number]
        )
    # Fitted judgments, in turn, do not tell types.
    fitted = method_of(phase).folds.fitting(client, 0, 1)
    turned = client.tiers.clone()
    turned[fitted] = 2 - turned[fitted]
    swapped = Rounds(phase).reply(1, dataclasses.replace(client, tiers=turned))
    assert torch.equal(swapped.tensors[SHARES], one.tensors[SHARES])
    assert not torch.allclose(swapped.tensors[name], one.tensors[name])


def test_without_cross_fitting_a_type_is_told_by_what_it_is_fitted_to() -> None:
    phase, client = em(*SHARP, "method.folds.cross_fit=false"), shard()
    reply = Rounds(phase).reply(1, client)
    shares = expected_shares(phase, Rounds(phase).state, client, 0, 1)
    torch.testing.assert_close(reply.tensors[SHARES].double(), shares, atol=1e-6, rtol=1e-5)
    assert not any("assessed" in name for name in reply.scalars)


@pytest.mark.parametrize("assignment", ["posterior", "hardest", "per_judgment"])
def test_types_have_no_names(assignment: str) -> None:
    phase, clients = em(f"method/assignment={assignment}", "method.types=3", "method.top=3"), world(4)
    one, other = Rounds(phase), Rounds(phase)
    one.state = {**one.state, PRIOR: torch.tensor([0.5, 0.3, 0.2])}
    order = [2, 0, 1]
    other.state = {
        **one.state,
        PRIOR: one.state[PRIOR][order],
        **{f"{TYPES}{place}.score.weight": weight_of(one.state, k) for place, k in enumerate(order)},
    }
    first, second = total(one.round(1, clients)), total(other.round(1, clients))
    for name in (MASS, SHARES):
        torch.testing.assert_close(second.tensors[name], first.tensors[name][order], rtol=1e-6, atol=1e-7)
    for place, k in enumerate(order):
        torch.testing.assert_close(weight_of(other.state, place), weight_of(one.state, k), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(other.state[PRIOR], one.state[PRIOR][order])
    found, turned = scores(phase, one.state, clients), scores(phase, other.state, clients)
    assert turned == pytest.approx(found, abs=1e-5)


def test_equal_types_have_equal_shares_and_stay_equal_for_ever() -> None:
    phase, clients = em("method/start=equal", "method.start.demonstration=true", rounds=5), world(5)
    rounds = Rounds(phase)
    for number in range(1, 6):
        for reply in rounds.round(number, clients):
            assert reply.tensors[SHARES].tolist() == [0.5, 0.5]
        assert torch.equal(weight_of(rounds.state, 0), weight_of(rounds.state, 1))
        assert rounds.state[PRIOR].tolist() == [0.5, 0.5]
    assert not torch.equal(weight_of(rounds.state, 0), weight_of(Rounds(phase).state, 0))


def test_equal_types_keep_the_prior_whatever_it_is() -> None:
    phase = em("method/start=equal", "method.start.demonstration=true", "method.types=3")
    rounds = Rounds(phase)
    prior = torch.tensor([0.6, 0.3, 0.1])
    rounds.state = {**rounds.state, PRIOR: prior}
    for reply in rounds.round(1, world(4)):
        torch.testing.assert_close(reply.tensors[SHARES], prior, rtol=0, atol=1e-7)
    torch.testing.assert_close(rounds.state[PRIOR], prior)


def test_the_server_divides_by_the_mass_and_not_by_less_than_told() -> None:
    phase = em("method.least_mass=2.0", "method.prior_rate=0.25")
    rounds, clients = Rounds(phase), world(5)
    before = rounds.state
    summed = total(rounds.round(1, clients))
    for number in (0, 1):
        mean = summed.tensors[f"{DELTA}{TYPES}{number}.score.weight"] / max(2.0, float(summed.tensors[MASS][number]))
        torch.testing.assert_close(weight_of(rounds.state, number), (weight_of(before, number) + mean).float())
    told = summed.tensors[SHARES] / 5
    torch.testing.assert_close(rounds.state[PRIOR].double(), 0.75 * 0.5 + 0.25 * told, rtol=1e-6, atol=1e-7)
    assert float(rounds.state[PRIOR].sum()) == pytest.approx(1.0)


def test_the_mean_of_clones_is_that_of_one() -> None:
    """As many annotators with the same judgments move a type as far as one does, where one is enough mass."""
    phase = em("method.least_mass=0.001")
    client = shard()
    one, many = Rounds(phase), Rounds(phase)
    one.round(1, [client])
    many.round(1, [client] * 4)
    for number in (0, 1):
        torch.testing.assert_close(weight_of(one.state, number), weight_of(many.state, number))
    torch.testing.assert_close(one.state[PRIOR], many.state[PRIOR])


def test_noise_cannot_make_a_share_negative_or_end_the_prior() -> None:
    phase = em()
    rounds = Rounds(phase)
    sums = total([rounds.reply(1, shard())])
    for told, expected in (([-3.0, 2.0], [0.35, 0.65]), ([-3.0, -2.0], [0.5, 0.5])):
        noisy = dataclasses.replace(
            sums, tensors={**sums.tensors, SHARES: torch.tensor(told), MASS: -sums.tensors[MASS]}
        )
        after = phase.update(rounds.state, noisy, rounds.optimizer)
        assert after[PRIOR].tolist() == pytest.approx(expected)
        assert all(bool(torch.isfinite(tensor).all()) for tensor in after.values())


def test_a_client_trains_no_more_types_than_told_and_says_so_in_the_mass() -> None:
    few = em("method.types=3", "method.top=1", "method.least_share=0")
    reply = Rounds(few).reply(1, shard())
    trained = {name for name in reply.tensors if name.startswith(DELTA)}
    best = int(reply.tensors[SHARES].argmax())
    assert trained == {f"{DELTA}{TYPES}{best}.score.weight"}
    assert (reply.tensors[MASS] > 0).tolist() == [k == best for k in range(3)]
    assert float(reply.tensors[SHARES].sum()) == pytest.approx(1.0)
    none = Rounds(em("method.types=3", "method.least_share=0.99", "method.assignment.temper=0.001")).reply(1, shard())
    assert not any(name.startswith(DELTA) for name in none.tensors)
    assert not none.tensors[MASS].any()


def test_a_round_in_which_nobody_trains_moves_no_type() -> None:
    phase = em("method.types=3", "method.least_share=0.99", "method.assignment.temper=0.001")
    rounds = Rounds(phase)
    before = rounds.state
    rounds.round(1, world(3))
    assert all(torch.equal(weight_of(before, k), weight_of(rounds.state, k)) for k in range(3))


def test_judgments_count_where_they_are_the_weight() -> None:
    phase = em("method.weight=judgments")
    reply = Rounds(phase).reply(1, shard(judgments=10))
    assert reply.scalars[WEIGHT] == 5.0
    assert float(reply.tensors[MASS].sum()) == pytest.approx(5.0)
    torch.testing.assert_close(reply.tensors[MASS].double(), 5 * reply.tensors[SHARES].double(), rtol=1e-5, atol=1e-6)


def test_a_batch_is_drawn_by_weight_and_the_whole_is_its_mean() -> None:
    """Over many draws the mean step of a batch is the step on all, weighted."""
    whole, part = em("method.types=1", "method.top=1"), em("method.types=1", "method.top=1", "method.batch=3")
    client = shard(judgments=16)
    exact = Rounds(whole).reply(1, client).tensors[f"{DELTA}{TYPES}0.score.weight"]
    rounds, drawn = Rounds(part), []
    for draw in range(150):
        # Rounds of the same parity have the same halves and other draws.
        streams = Streams(0, "em", 1 + 2 * draw, "ann")
        drawn.append(part.local(rounds.state, client, streams, {}).tensors[f"{DELTA}{TYPES}0.score.weight"])
    stacked = torch.stack(drawn)
    error = stacked.std(0) / math.sqrt(len(drawn))
    assert bool(((stacked.mean(0) - exact).abs() < 4 * error + 1e-6).all())
    assert float(stacked.std(0).max()) > 0.01


def test_what_an_optimiser_remembers_is_kept_by_type() -> None:
    phase = em("method.local.optimizer=adam", "method.local.optimizer_state=persist", "method.top=2")
    rounds = Rounds(phase)
    rounds.round(1, [shard()])
    kept = rounds.memories["ann"]
    assert {name.split("/")[0] for name in kept} == {"type 0", "type 1"}
    one, other = ({n: t for n, t in kept.items() if n.startswith(f"type {k}/")} for k in (0, 1))
    assert len(one) == len(other) > 0


def test_the_start_s_clusters_tell_types_at_first_and_judgments_later() -> None:
    clients = world(6, menus=12)
    rounds, left = clustered(clients, "method.start.dimensions=36", *SHARP)
    assert torch.equal(rounds.state[CENTRES], left[CENTRES])
    hard = [reply.tensors[SHARES] for number in (1, 2) for reply in rounds.round(number, clients)]
    assert all(sorted(each.tolist()) == [0.0, 1.0] for each in hard)
    assert torch.equal(torch.stack(hard[:6]), torch.stack(hard[6:]))
    soft = [reply.tensors[SHARES] for reply in rounds.round(3, clients)]
    assert not any(sorted(each.tolist()) == [0.0, 1.0] for each in soft)


def test_the_probe_is_not_looked_at_once_clusters_have_done() -> None:
    clients = world(4)
    rounds, _ = clustered(clients)
    assert isinstance(rounds.phase, EMPhase)
    for number in (1, 2):
        rounds.round(number, clients)
    other = [dataclasses.replace(each, probe=each.probe.flip(2)) for each in clients]
    for one, two in zip(clients, other, strict=True):
        assert same(dict(rounds.reply(3, one).tensors), dict(rounds.reply(3, two).tensors))
        evaluated = [rounds.phase.evaluate(rounds.state, each, Streams(0)).scalars for each in (one, two)]
        assert evaluated[0] == evaluated[1]


def test_cluster_dpo_keeps_to_the_clusters_and_serves_newcomers_by_their_judgments() -> None:
    clients = world(6)
    rounds, _ = clustered(clients, "method/assignment=clusters", rounds=6)
    phase = rounds.phase
    assert isinstance(phase, EMPhase)
    for number in range(1, 7):
        for reply in rounds.round(number, clients):
            assert sorted(reply.tensors[SHARES].tolist()) == [0.0, 1.0]
    told = phase.shares_of(rounds.state, clients[0], clients[0].train, 0)
    assert sorted(told[:, 0].tolist()) == [0.0, 1.0]
    newcomer = shard("new", ("new",), ("b",), role=Role.UNSEEN, menus=0)
    soft = phase.shares_of(rounds.state, newcomer, newcomer.train, 0)
    assert torch.equal(soft, phase.posteriors(rounds.state, newcomer, newcomer.train))


def test_known_types_are_an_upper_bound_that_reads_them_and_one_type_reads_nothing() -> None:
    known = em("method/assignment=known", "method.assignment.names=[b,a]")
    assert [Rounds(known).reply(1, each).tensors[SHARES].tolist() for each in world(2)] == [[0, 1], [1, 0]]
    one = Rounds(em("method/assignment=together", "method.types=1", "method.top=1")).reply(1, shard())
    assert one.tensors[SHARES].tolist() == [1.0]


def test_an_alarm_restarts_the_emptiest_type_beside_the_fullest() -> None:
    phase = em("method.collapse.action=restart", "method.collapse.patience=2", "method.prior_rate=0")
    rounds, clients = Rounds(phase), world(3)
    rounds.state = {**rounds.state, PRIOR: torch.tensor([0.97, 0.03])}
    rounds.round(1, clients)
    assert (int(rounds.state[LOW]), int(rounds.state[ALARMS])) == (1, 0)
    rounds.round(2, clients)
    assert [int(rounds.state[name]) for name in (LOW, ALARMS, RESTARTS)] == [0, 1, 1]
    assert rounds.state[PRIOR].tolist() == pytest.approx([0.5, 0.5])
    apart = weight_of(rounds.state, 0) - weight_of(rounds.state, 1)
    assert 0 < float(apart.norm()) < float(weight_of(rounds.state, 0).norm())
    told = phase.report(rounds.state)
    assert told == {
        "train/effective_types": pytest.approx(2.0),
        "train/largest_prior": pytest.approx(0.5),
        "train/collapse_alarms": 1.0,
        "train/collapse_restarts": 1.0,
    }


def test_a_collapse_can_end_the_run() -> None:
    rounds = Rounds(em("method.collapse.action=fail", "method.collapse.patience=1", "method.prior_rate=0"))
    rounds.state = {**rounds.state, PRIOR: torch.tensor([0.97, 0.03])}
    with pytest.raises(RunFailed, match=r"0\.97, 0\.03"):
        rounds.round(1, world(2))


def test_only_what_the_template_names_is_sent_and_nothing_in_it_depends_on_data() -> None:
    phase = em("method.types=3", "method.top=1")
    rounds = Rounds(phase)
    template = phase.template(rounds.state)
    for reply in rounds.round(1, world(4)):
        template.check(reply)
        assert set(reply.tensors) <= set(template.tensors)
    assert phase.template(rounds.state) == template
    # A guarantee asks for it before the start has been run.
    _, after = starting()
    assert after.template(after.initial(Streams(0), {})).tensors.keys() == {
        *(f"{DELTA}{TYPES}{k}.score.weight" for k in (0, 1)),
        MASS,
        SHARES,
    }


def test_too_few_judgments_are_refused() -> None:
    with pytest.raises(UserError, match="has 1 training judgments"):
        em().check(shard(judgments=1))


def test_vectors_that_types_are_not_made_for_are_refused() -> None:
    client = shard()
    with pytest.raises(UserError, match=r"vectors of length 2, .* length, 3; set encoder\.size=2"):
        em().check(dataclasses.replace(client, features=client.features[..., :2]))


def test_every_annotator_of_a_silo_has_a_posterior_of_its_own() -> None:
    phase = em(*SHARP)
    state, alone, together = Rounds(phase).state, world(4), silo(4)
    found = phase.posteriors(state, together, together.train)
    for number, client in enumerate(alone):
        torch.testing.assert_close(found[:, number], phase.posteriors(state, client, client.train)[:, 0])
    none = phase.posteriors(state, together, together.train[:0])
    torch.testing.assert_close(none, torch.full((2, 4), 0.5, dtype=torch.float64))
