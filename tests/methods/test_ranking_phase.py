"""How types are scored: on held-out judgments, with types told by others, and by true type where it is known."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fedalign.contribution import State
from fedalign.data.federated import Role
from fedalign.data.rankings import RankingShard
from fedalign.methods.em import EMPhase
from fedalign.methods.type_model import PRIOR, TYPES
from fedalign.metrics.record import decode
from fedalign.objectives.plackett_luce import orders_of, ranking_log_likelihood
from fedalign.rng import Streams

from .ranking_worlds import TYPES as TRUE
from .ranking_worlds import Rounds, em, same, scores, shard, silo, world

SHARP = ("method.assignment.temper=1", "method.assignment.temper_rounds=1")


def oracle(phase: EMPhase) -> State:
    """Return a state whose types are the true ones."""
    state = Rounds(phase).state
    return {**state, **{f"{TYPES}{k}.score.weight": TRUE[name][None] for k, name in enumerate("ab")}}


def changed(client: RankingShard, index: torch.Tensor) -> RankingShard:
    """Return a client whose judgments at ``index`` are turned round."""
    tiers = client.tiers.clone()
    tiers[index] = 2 - tiers[index]
    return dataclasses.replace(client, tiers=tiers)


def test_scores_are_those_of_the_likeliest_type_by_hand() -> None:
    phase, client = em(*SHARP), shard("c", ("p1",), ("b",), judgments=12, test=6)
    state = oracle(phase)
    found = scores(phase, state, [client])
    utilities = torch.stack([client.features @ TRUE[name] for name in "ab"])
    likely = ranking_log_likelihood(utilities, orders_of(client.tiers)).double()
    shares = torch.softmax(state[PRIOR].double().log() + likely[:, client.train].sum(1), 0)
    held = (shares[:, None] * likely[:, client.test].exp()).sum(0).log()
    assert found["test/log_likelihood"] == pytest.approx(float(held.mean()), abs=1e-5)
    assert found["test/log_likelihood_chance"] == pytest.approx(-torch.tensor(6.0).log().item(), abs=1e-5)
    own = utilities[int(shares.argmax())][client.test]
    right = pairs = 0.0
    for values, tiers in zip(own.tolist(), client.tiers[client.test].tolist(), strict=True):
        for i in range(3):
            for j in range(3):
                if tiers[i] < tiers[j]:
                    pairs += 1
                    right += values[i] > values[j]
    assert found["test/accuracy"] == pytest.approx(right / pairs)
    assert found["test/type_accuracy"] == 1.0


def test_a_known_world_is_recovered_and_told_by_true_type() -> None:
    phase, clients = em(*SHARP), world(8, 16)
    found = scores(phase, oracle(phase), clients)
    assert found["test/type_accuracy"] == found["test/adjusted_rand"] == 1.0
    assert found["test/largest_type_share"] == 0.5
    assert found["test/accuracy_worst"] <= found["test/accuracy"]
    summed = [decode(phase.evaluate(oracle(phase), each, Streams(0)).scalars) for each in clients[:2]]
    assert [{item.group for item in items} for items in summed] == [{"a"}, {"b"}]


def test_held_out_judgments_never_reach_training_or_what_tells_types() -> None:
    phase, client = em(*SHARP), shard()
    other = changed(client, client.test)
    one, two = Rounds(phase).reply(1, client), Rounds(phase).reply(1, other)
    assert same(dict(one.tensors), dict(two.tensors))
    assert one.scalars == two.scalars
    state = oracle(phase)
    first, second = (phase.shares_of(state, each, phase.divided(each, 0)[0], 0) for each in (client, other))
    assert torch.equal(first, second)
    assert scores(phase, state, [client])["test/accuracy"] != scores(phase, state, [other])["test/accuracy"]


def test_judgments_for_validation_only_choose_among_runs() -> None:
    phase, client = em(*SHARP, "method.folds.validation=0.5"), shard(judgments=12)
    held = phase.method.folds.validating(client, 0)
    other = changed(client, held)
    for number in (1, 2):
        one, two = Rounds(phase).reply(number, client), Rounds(phase).reply(number, other)
        assert same(dict(one.tensors), dict(two.tensors))
        assert one.scalars == two.scalars
    state = oracle(phase)
    found, turned = (scores(phase, state, [each]) for each in (client, other))
    assert {name for name in found if found[name] != turned[name]} == {"train/log_likelihood"}
    without = em(*SHARP)
    assert "train/log_likelihood" not in scores(without, oracle(without), [client])


def test_the_probe_is_never_trained_on_or_scored() -> None:
    phase, client = em(*SHARP), shard()
    other = dataclasses.replace(client, probe=client.probe.flip(2))
    assert same(dict(Rounds(phase).reply(1, client).tensors), dict(Rounds(phase).reply(1, other).tensors))
    assert scores(phase, oracle(phase), [client]) == scores(phase, oracle(phase), [other])


@pytest.mark.parametrize("assignment", ["posterior", "hardest", "per_judgment"])
def test_true_types_are_read_by_measures_alone(assignment: str) -> None:
    phase, client = em(f"method/assignment={assignment}"), shard("c", ("p0", "p1"), ("a", "b"))
    hidden = dataclasses.replace(client, types=(None, None), groups=tuple("x" for _ in client.groups))
    one, two = Rounds(phase).reply(1, client), Rounds(phase).reply(1, hidden)
    assert same(dict(one.tensors), dict(two.tensors))
    assert one.scalars == two.scalars
    state = oracle(phase)
    assert torch.equal(*(phase.shares_of(state, each, each.train, 0) for each in (client, hidden)))
    named, unnamed = scores(phase, state, [client]), scores(phase, state, [hidden])
    assert {"test/type_accuracy", "test/adjusted_rand", "test/calibration_error"} <= set(named) - set(unnamed)
    assert unnamed["test/largest_type_share"] == named["test/largest_type_share"]


def test_a_newcomer_is_told_by_few_judgments_and_by_none_is_the_prior() -> None:
    phase = em(*SHARP, "method.evaluation.context=2")
    client = shard("new", ("p0", "p1"), ("a", "b"), role=Role.UNSEEN)
    known, target = phase.divided(client, 0)
    assert torch.bincount(client.owner[known]).tolist() == [2, 2]
    assert set(known.tolist()) <= set(client.train.tolist())
    assert torch.equal(target, client.test)
    found = scores(phase, oracle(phase), [client])
    assert {"unseen/accuracy", "unseen/type_accuracy", "unseen/log_likelihood"} <= set(found)
    assert not any(name.startswith(("test/", "train/")) for name in found)
    none = em(*SHARP, "method.evaluation.context=0")
    state = {**oracle(none), PRIOR: torch.tensor([0.8, 0.2])}
    shares = none.shares_of(state, client, none.divided(client, 0)[0], 0)
    torch.testing.assert_close(shares, torch.tensor([[0.8, 0.8], [0.2, 0.2]], dtype=torch.float64), atol=1e-7, rtol=0)


def test_no_more_judgments_are_predicted_than_told() -> None:
    phase = em("method.evaluation.judgments=2", "method.evaluation.known=3")
    client = silo(3)
    known, target = phase.divided(client, 0)
    assert torch.bincount(client.owner[known]).tolist() == [3, 3, 3]
    assert torch.bincount(client.owner[target]).tolist() == [2, 2, 2]
    again = phase.divided(client, 0)
    assert torch.equal(known, again[0])
    assert torch.equal(target, again[1])


def test_a_client_without_held_out_judgments_is_no_zero() -> None:
    phase, client = em(*SHARP), shard(test=0)
    reply = phase.evaluate(oracle(phase), client, Streams(0))
    assert not decode(reply.scalars)


def test_evaluations_add_up_over_silos() -> None:
    phase = em(*SHARP)
    state = oracle(phase)
    apart, together = scores(phase, state, world(6)), scores(phase, state, [silo(6)])
    assert together == pytest.approx(apart, abs=1e-6)
