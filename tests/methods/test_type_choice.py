"""The choice of the number of types: what it rests on, what it keeps, and that it finds how many there are."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from fedalign.contribution import State, total
from fedalign.data.rankings import RankingShard, Role
from fedalign.errors import UserError
from fedalign.federation.server_optimizer import FedAvg
from fedalign.methods.base import Participation, Phase, Setting
from fedalign.methods.em import EMPhase
from fedalign.methods.type_choice import (
    LOG_LIKELIHOOD,
    LOG_LIKELIHOOD_PRIOR,
    ChoicePhase,
    ChosenEMDPO,
    least_of_the_best,
)
from fedalign.methods.type_model import PRIOR, count, type_of
from fedalign.rng import Streams
from tests.configs import configured

from .type_worlds import shard

DIMENSION = 3
SMALL = (
    "method=emdpo_chosen",
    "model=linear_utility",
    "model.init_std=0.1",
    "method.batch=null",
    "method.folds.validation=0.2",
    "method.local.steps=4",
    "method.local.lr=0.5",
    "method.assignment.temper_rounds=4",
    "method.start.rounds=3",
    "method.start.iterations=6",
    "method.evaluation.known=null",
)


def chosen(*overrides: str) -> ChosenEMDPO:
    """Return a method."""
    method = configured(*SMALL, *overrides).method
    assert isinstance(method, ChosenEMDPO)
    return method


def phases(*overrides: str, rounds: int = 8) -> list[Phase[RankingShard]]:
    """Return the phases of a method."""
    config = configured(*SMALL, *overrides)
    return list(config.method.phases(Setting(rounds, DIMENSION, config.model, config.encoder)))


def silo(weights: Tensor, people: int, judgments: int, client: str, menus: int = 4) -> RankingShard:
    """Return a silo whose annotators are of the types of ``weights``, (T, DIMENSION), in turn; full orders of three."""
    generator = torch.Generator().manual_seed(sum(map(ord, client)))
    number = torch.arange(people) % len(weights)
    owner = torch.arange(people).repeat_interleave(judgments)
    features = torch.randn(len(owner), 3, DIMENSION, generator=generator)
    utilities = torch.einsum("nsd,nd->ns", features, weights[number[owner]])
    gumbel = -torch.empty(utilities.shape).exponential_(generator=generator).log()
    tiers = (utilities + gumbel).argsort(1, descending=True).argsort(1)
    public = torch.randn(menus, 3, DIMENSION, generator=torch.Generator().manual_seed(1))
    answers = torch.einsum("msd,pd->pms", public, weights[number]).argsort(2, descending=True).argsort(2)
    names = tuple(f"type-{n}" for n in number.tolist())
    return dataclasses.replace(shard(features, tiers, owner.tolist(), names, client), probe=answers)


def ran(phases: Sequence[Phase[RankingShard]], clients: Sequence[RankingShard]) -> dict[str, State]:
    """Run all phases on all clients, without an engine, and return what each left."""
    left: dict[str, State] = {}
    for phase in phases:
        state, optimizer = phase.initial(Streams(0, phase.name), left), FedAvg(1.0).build()
        for number in range(1, phase.rounds + 1):
            replies = [phase.local(state, c, Streams(0, phase.name, number, c.client), {}) for c in clients]
            for reply in replies:
                template = phase.template(phase.broadcast(state))
                assert template is not None
                template.check(reply)
            state = phase.update(state, total(replies), optimizer)
        left[phase.name] = state
    return left


THREE = 3.0 * torch.eye(3)


@pytest.fixture(scope="module")
def clients() -> list[RankingShard]:
    """Return three clear types."""
    return [silo(THREE, 30, 15, f"three-{number}") for number in range(2)]


@pytest.fixture(scope="module")
def run(clients: list[RankingShard]) -> tuple[list[Phase[RankingShard]], dict[str, State]]:
    """Return the phases, and what each left."""
    found = phases()
    return found, ran(found, clients)


def test_the_phases_are_a_start_and_em_for_each_number_and_then_the_choice(
    run: tuple[list[Phase[RankingShard]], dict[str, State]],
) -> None:
    names = [phase.name for phase in run[0]]
    assert names == ["em_1", "start_2", "em_2", "start_3", "em_3", "start_4", "em_4", "em"]
    assert isinstance(run[0][-1], ChoicePhase)
    assert (run[0][-1].rounds, run[0][-1].participation) == (1, Participation.ALL)
    assert [count(run[1][f"em_{k}"]) for k in (1, 2, 3, 4)] == [1, 2, 3, 4]


def test_three_clear_types_are_found_and_what_was_trained_for_three_is_kept(
    run: tuple[list[Phase[RankingShard]], dict[str, State]],
) -> None:
    found, left = run
    report = found[-1].report(left["em"])
    assert report["train/chosen_types"] == 3
    assert report["train/log_likelihood_3"] > report["train/log_likelihood_2"] + 0.1
    assert report["train/effective_types"] > 2.9
    kept = {k: t for k, t in left["em"].items() if k not in (LOG_LIKELIHOOD, LOG_LIKELIHOOD_PRIOR)}
    assert kept.keys() == left["em_3"].keys()
    assert all(torch.equal(kept[name], left["em_3"][name]) for name in kept)


def test_one_type_is_found_where_everybody_is_alike() -> None:
    alike = [silo(THREE[:1], 20, 15, f"one-{number}") for number in range(2)]
    found = phases("method.choices=[1,2,3]", "method.types=3")
    assert found[-1].report(ran(found, alike)["em"])["train/chosen_types"] == 1


def test_the_sums_are_how_likely_held_out_judgments_are(
    run: tuple[list[Phase[RankingShard]], dict[str, State]], clients: list[RankingShard]
) -> None:
    """Against Bayes' rule by hand, with utilities of linear types read off the states."""
    left = run[1]
    folds, known, prior, number = chosen().folds, torch.zeros(4), torch.zeros(4), 0
    for client in clients:
        held, told = folds.validating(client, 0), folds.telling(client, 0)
        number += len(held)
        assert not set(held.tolist()) & set(told.tolist())
        for place in range(4):
            state = left[f"em_{place + 1}"]
            for person in range(len(client.people)):
                before, after = (
                    torch.stack([plackett_luce(state, k, client, own).double() for k in range(place + 1)])
                    for own in (told[client.owner[told] == person], held[client.owner[held] == person])
                )
                posterior = torch.softmax(state[PRIOR].double().log() + before.sum(1), 0)
                known[place] += (posterior @ after.exp()).log().sum()
                prior[place] += (state[PRIOR].double() @ after.sum(1).exp()).log()
    assert torch.allclose(left["em"][LOG_LIKELIHOOD], known / number, atol=1e-4)
    assert torch.allclose(left["em"][LOG_LIKELIHOOD_PRIOR], prior / number, atol=1e-4)


def plackett_luce(state: State, number: int, client: RankingShard, index: Tensor) -> Tensor:
    """Return log-likelihoods of full orders of three under one linear type, shape (n,)."""
    values = client.features[index] @ type_of(state, number)["score.weight"][0]
    best, middle, worst = (values[client.tiers[index] == tier] for tier in range(3))
    first = best - torch.stack([best, middle, worst]).logsumexp(0)
    return first + middle - torch.stack([middle, worst]).logsumexp(0)


def test_types_are_told_as_em_for_the_chosen_number_tells_them(
    run: tuple[list[Phase[RankingShard]], dict[str, State]], clients: list[RankingShard]
) -> None:
    found, left = run
    choice, em = found[-1], next(phase for phase in found if phase.name == "em_3")
    assert isinstance(choice, ChoicePhase)
    assert isinstance(em, EMPhase)
    told = chosen().folds.telling(clients[0], 0)
    shares = choice.shares_of(left["em"], clients[0], told, 0)
    assert torch.equal(shares, em.shares_of(left["em_3"], clients[0], told, 0))
    streams = Streams(0, "em", 1, clients[0].client)
    unseen = dataclasses.replace(clients[0], role=Role.UNSEEN, train=clients[0].train[:6], test=clients[0].train[6:])
    for shard_ in (clients[0], unseen):
        ours, theirs = (
            phase.evaluate(state, shard_, streams) for phase, state in ((choice, left["em"]), (em, left["em_3"]))
        )
        assert ours.scalars == theirs.scalars


def test_before_the_choice_the_fewest_types_are_evaluated_and_nothing_is_reported(
    run: tuple[list[Phase[RankingShard]], dict[str, State]], clients: list[RankingShard]
) -> None:
    found, left = run
    first = found[-1].initial(Streams(0, "em"), left)
    streams = Streams(0, "em", 0, clients[0].client)
    assert found[-1].report(first) == {}
    assert (
        found[-1].evaluate(first, clients[0], streams).scalars
        == found[0].evaluate(left["em_1"], clients[0], streams).scalars
    )


def test_what_is_added_up_is_known_before_anything_has_run() -> None:
    choice = phases("method.choices=[1,3]", "method.types=3")[-1]
    template = choice.template(choice.initial(Streams(0, "em"), {}))
    assert template is not None
    assert sorted(template.tensors.values()) == [(1,), (2,), (2,)]


def test_ties_go_to_fewer_types() -> None:
    means = torch.tensor([-1.02, -1.009, -1.0, -1.0])
    assert least_of_the_best(means, 0.0) == 2
    assert least_of_the_best(means, 0.01) == 1
    assert least_of_the_best(means, 0.05) == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.folds.validation=0", "method.folds.validation=0.*set it above 0"),
        ("method.choices=[4,2]", "must ascend"),
        ("method.choices=[2,2,4]", "must ascend"),
        ("method.choices=[1,2]", r"goes up to 2, method.types=4.*method.types=2"),
        ("method/fair=regret", r"mixes none; set method/fair=none, and take method=emdpo"),
    ],
)
def test_choices_that_cannot_be_compared_are_refused(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        chosen(override)


def test_clients_that_hold_nothing_out_are_refused_before_anything_is_trained() -> None:
    choice = phases("method.folds.validation=0.1")[-1]
    few = silo(THREE, 3, 9, "few")
    with pytest.raises(UserError, match=r"client 'few'.*method.folds.validation=0.1.*raise it"):
        choice.check(few)
    choice.check(dataclasses.replace(few, role=Role.UNSEEN))
    choice.check(silo(THREE, 3, 10, "enough"))
