"""Group-robust DPO: weights against the published rule, the mean change against plain DPO's, and who gains."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from fedalign.contribution import DELTA, Contribution, State, total
from fedalign.data.rankings import RankingShard
from fedalign.errors import UserError
from fedalign.federation.server_optimizer import FedAvg
from fedalign.methods.base import Phase, Setting
from fedalign.methods.em import MASS, EMPhase
from fedalign.methods.group_robust import LOSSES, SEEN, WEIGHTS, GroupRobustPhase
from fedalign.methods.type_model import type_of
from fedalign.rng import Streams
from tests.configs import configured

from .type_worlds import shard

DIMENSION = 3
TASTES = {"many": torch.tensor([2.0, 1.0, 0.0]), "few": torch.tensor([-2.0, 1.0, 0.0])}
NAME = "types.0.score.weight"
SMALL = (
    "model=linear_utility",
    "method/fair=none",
    "model.init_std=0.1",
    "method.batch=null",
    "method.folds.assess=null",
    "method.folds.validation=0",
    "method.local.steps=3",
    "method.local.lr=0.3",
    "method.local.max_grad_norm=null",
)
ROBUST = ("method=group_robust_dpo", "method.groups.names=[many,few,absent]", *SMALL)


def phase(*overrides: str, rounds: int = 20) -> EMPhase:
    """Return the one phase of a method."""
    config = configured(*overrides)
    (found,) = config.method.phases(Setting(rounds, DIMENSION, config.model, config.encoder))
    assert isinstance(found, EMPhase)
    return found


def robust(*overrides: str, rounds: int = 20) -> EMPhase:
    """Return the phase of group-robust DPO."""
    return phase(*ROBUST, *overrides, rounds=rounds)


def client(groups: tuple[str, ...], name: str, judgments: int = 10) -> RankingShard:
    """Return full orders of three, by annotators of these groups."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    owner = torch.arange(len(groups)).repeat_interleave(judgments)
    features = torch.randn(len(owner), 3, DIMENSION, generator=generator)
    tastes = torch.stack([TASTES[group] for group in groups])
    utilities = torch.einsum("nsd,nd->ns", features, tastes[owner])
    gumbel = -torch.empty(utilities.shape).exponential_(generator=generator).log()
    return shard(features, (utilities + gumbel).argsort(1, descending=True).argsort(1), owner.tolist(), groups, name)


@pytest.fixture(scope="module")
def clients() -> list[RankingShard]:
    """Return devices of one annotator each: six of many, two of few."""
    return [client(("few" if number % 4 == 3 else "many",), f"device-{number}") for number in range(8)]


def replies(
    found: Phase[RankingShard], state: State, clients: list[RankingShard], number: int = 1
) -> list[Contribution]:
    """Return what clients contribute to a round."""
    return [found.local(state, c, Streams(0, "em", number, c.client), {}) for c in clients]


def after(found: EMPhase, clients: list[RankingShard]) -> State:
    """Return the state after all rounds on all clients."""
    state, optimizer = found.initial(Streams(0, "em"), {}), FedAvg(1.0).build()
    for number in range(1, found.rounds + 1):
        state = found.update(state, total(replies(found, state, clients, number)), optimizer)
    return state


def loss(found: EMPhase, state: State, own: RankingShard) -> float:
    """Return the mean loss of all of a client's judgments, in nats."""
    return -float(found.log_likelihoods(state, own, torch.arange(len(own.owner)))[0].mean())


def told(losses: Tensor, count: Tensor) -> Contribution:
    """Return a round in which no client changed anything, and groups had these losses."""
    sums = {"groups/loss_sum": losses * count, "groups/count": count}
    return Contribution({MASS: torch.ones(1), "em/shares": torch.ones(1), **sums})


def test_weights_follow_the_published_rule() -> None:
    """q_g <- q_g exp(step loss_g) / sum, over two rounds; an absent group keeps its last loss."""
    found = robust("method.groups.step=0.5")
    state, optimizer = found.initial(Streams(0), {}), FedAvg(1.0).build()
    assert torch.allclose(state[WEIGHTS], torch.full((3,), 1 / 3))
    state = found.update(state, told(torch.tensor([1.0, 2.0, 1.5]), torch.tensor([3.0, 1.0, 1.0])), optimizer)
    grown = [math.exp(0.5), math.exp(1.0), math.exp(0.75)]
    assert state[WEIGHTS].tolist() == pytest.approx([g / sum(grown) for g in grown], rel=1e-5)
    state = found.update(state, told(torch.tensor([3.0, 0.0, 1.0]), torch.tensor([3.0, 0.0, 1.0])), optimizer)
    grown = [math.exp(0.5 + 1.5), math.exp(1.0 + 1.0), math.exp(0.75 + 0.5)]
    assert state[WEIGHTS].tolist() == pytest.approx([g / sum(grown) for g in grown], rel=1e-5)
    assert state[SEEN].tolist() == [6.0, 1.0, 2.0]
    assert state[LOSSES].tolist() == [3.0, 2.0, 1.0]


def test_a_group_that_was_never_there_weighs_as_others_do_on_average() -> None:
    found = robust("method.groups.step=1.0")
    state, optimizer = found.initial(Streams(0), {}), FedAvg(1.0).build()
    state = found.update(state, told(torch.tensor([1.0, 2.0, 0.0]), torch.tensor([3.0, 1.0, 0.0])), optimizer)
    grown = [math.exp(1.0), math.exp(2.0), math.exp(1.5)]
    assert state[WEIGHTS].tolist() == pytest.approx([g / sum(grown) for g in grown], rel=1e-5)


def test_the_mean_change_is_that_of_groups_by_their_weights(clients: list[RankingShard]) -> None:
    """Against plain DPO's changes: sum_g q_g times the mean change of group g's clients."""
    found, plain = robust(), phase("method=dpo", *SMALL, "method.folds.cross_fit=true")
    state = found.initial(Streams(0), {})
    weights = torch.tensor([0.3, 0.6, 0.1])
    # As after a great many rounds, so that shares are known.
    state |= {WEIGHTS: weights, SEEN: 1e6 * torch.tensor([6.0, 2.0, 0.0])}
    moved = found.update(state, total(replies(found, state, clients)), FedAvg(1.0).build())
    changes = [reply.tensors[DELTA + NAME] for reply in replies(plain, state, clients)]
    expected = torch.zeros_like(changes[0])
    for place, group in enumerate(("many", "few")):
        own = [change for change, each in zip(changes, clients, strict=True) if each.types[0] == group]
        expected += weights[place] * torch.stack(own).mean(0)
    assert torch.allclose(moved[NAME] - state[NAME], expected, atol=1e-5)
    assert expected.norm() > 0.1


def test_the_first_round_is_plain_dpo_s_where_no_loss_counts(clients: list[RankingShard]) -> None:
    found, plain = robust(), phase("method=dpo", *SMALL, "method.folds.cross_fit=true")
    state, optimizer = found.initial(Streams(0), {}), FedAvg(1.0).build()
    ours = found.update(state, total(replies(found, state, clients)), optimizer)[NAME]
    theirs = plain.update(state, total(replies(plain, state, clients)), optimizer)[NAME]
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_losses_are_those_of_judgments_that_the_round_does_not_train_on(clients: list[RankingShard]) -> None:
    found = robust()
    state = found.initial(Streams(0), {})
    own = clients[0]
    (reply,) = replies(found, state, [own])
    held = found.method.folds.assessing(own, 0, 1)
    assert len(held) == 5
    values = own.features[held] @ type_of(state, 0)["score.weight"][0]
    order = own.tiers[held].argsort(1)
    values = values.gather(1, order)
    expected = sum(values[:, place:].logsumexp(1) - values[:, place] for place in range(2))
    assert isinstance(expected, Tensor)
    assert reply.tensors["groups/loss_sum"].tolist() == pytest.approx([float(expected.mean()), 0, 0], rel=1e-5)
    assert reply.tensors["groups/count"].tolist() == pytest.approx([1, 0, 0])


@pytest.mark.parametrize("weight", ["uniform", "judgments"])
def test_a_silo_adds_what_its_groups_weigh(weight: str) -> None:
    found = robust(f"method.weight={weight}")
    state = found.initial(Streams(0), {})
    mixed = client(("many", "many", "few", "many"), "silo")
    (reply,) = replies(found, state, [mixed])
    whole = 1.0 if weight == "uniform" else 20.0
    assert reply.tensors["groups/count"].tolist() == pytest.approx([0.75 * whole, 0.25 * whole, 0])
    assert reply.tensors[MASS].tolist() == [whole]
    template = found.template(found.broadcast(state))
    assert template is not None
    template.check(reply)
    # Twice the weight of all is twice the change.
    doubled = {**state, WEIGHTS: 2 * state[WEIGHTS]}
    (twice,) = replies(found, doubled, [mixed])
    assert torch.allclose(twice.tensors[DELTA + NAME], 2 * reply.tensors[DELTA + NAME], atol=1e-6)


def test_the_worst_group_is_served_better_than_by_plain_dpo() -> None:
    """Opposed tastes, nine to one: plain DPO takes the many's side, and the robust policy takes none."""
    silos = [client(("many",) * 9 + ("few",), f"silo-{number}", judgments=16) for number in range(2)]
    found = robust("method.groups.names=[many,few]", "method.groups.step=0.5", rounds=40)
    plain = phase("method=dpo", *SMALL, rounds=40)
    ours, theirs = after(found, silos), after(plain, silos)
    fresh = {group: client((group,) * 20, f"test-{group}") for group in TASTES}
    worst, before = (loss(each, state, fresh["few"]) for each, state in ((found, ours), (plain, theirs)))
    assert before > math.log(6) + 0.5
    assert worst < math.log(6) + 0.05
    assert abs(worst - loss(found, ours, fresh["many"])) < 0.3
    report = found.report(ours)
    assert report["train/group_weight_few"] > 0.4
    assert sum(report.values()) == pytest.approx(1.0, abs=1e-5)


def test_annotators_of_no_known_group_are_refused(clients: list[RankingShard]) -> None:
    found = robust()
    assert isinstance(found, GroupRobustPhase)
    strange = dataclasses.replace(clients[0], types=("odd",))
    with pytest.raises(UserError, match=r"method.groups.names.*'device-0' has annotators of type odd.*method=dpo"):
        found.check(strange)
    with pytest.raises(UserError, match=r"of type None"):
        found.check(dataclasses.replace(clients[0], types=(None,)))
    found.check(clients[0])


def test_several_types_are_refused() -> None:
    with pytest.raises(UserError, match=r"trains one policy, method.types=2; set method.types=1"):
        robust("method.types=2")


def test_there_is_nothing_to_mix() -> None:
    with pytest.raises(UserError, match=r"trains one policy, there is nothing to mix; set method/fair=none"):
        robust("method/fair=regret")
