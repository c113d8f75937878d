"""Law 5 for pairs: what predicts a judgment never contains it, and what a latent says is what its context said."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from fedalign.contribution import Contribution, State
from fedalign.data.pairs import Judgments, PairShard, Role
from fedalign.methods.base import Setting
from fedalign.methods.latents import LatentsPhase
from fedalign.methods.reward_heads import RewardHeadsMethod
from fedalign.rng import Streams
from tests.cases import mostly_slow
from tests.methods.judgments import FEATURES, linear_world, silo, turned
from tests.methods.selectors import ARMS, Federation, phases, scores, settings

LEARNING = (
    "method.episodes.count=6",
    "method.episodes.max_context=8",
    "method.episodes.targets=4",
    "method.evaluation.context=8",
    "method.local.steps=10",
    "method.local.optimizer=adam",
    "method.local.lr=0.01",
    "method.local.schedule=constant",
    "method.local.optimizer_state=persist",
)
"""Enough to learn the linear world in a second or two, on two silos."""

SELECTOR = ("method.collect_latents=true", "method.divergence.annealing.schedule=constant")
ROUNDS = 8


@dataclasses.dataclass(frozen=True)
class World:
    """A trained selector, the latents that it has collected, and its clients."""

    phase: LatentsPhase
    state: State
    clients: tuple[PairShard, ...]

    @property
    def people(self) -> Iterator[tuple[PairShard, Judgments]]:
        """Every person with its client."""
        return ((client, person) for client in self.clients for person in client.people)

    def logits(self, name: str, client: PairShard, person: Judgments, context: Tensor, target: Tensor) -> Tensor:
        """Return log odds of the responses as they were stored, the chosen ones first."""
        with torch.no_grad():
            self.phase.load(self.state)
            predictor = self.phase.predictors(self.state, client, person, context, Streams(0))[name]
            pairs = person.features[target][None]
            return predictor(pairs[:, :, 0], pairs[:, :, 1])[0]


def clients() -> tuple[PairShard, ...]:
    world = linear_world(12, train=16, test=12)
    return silo(world[:6], "one"), silo(world[6:], "two")


@functools.cache
def trained(arm: str) -> World:
    """Return two silos of people of two groups that prefer opposite responses on half of the pairs, and a selector."""
    first, last = phases(f"method={arm}", *LEARNING, *SELECTOR, rounds=ROUNDS)
    assert isinstance(last, LatentsPhase)
    state = Federation(first).run(clients())
    federation = Federation(last, artefacts={first.name: state})
    federation.round(1, clients())
    return World(last, federation.state, clients())


@functools.cache
def bradley_terry() -> dict[str, float]:
    """Return what the plain reward model scores on the same clients, after as many steps."""
    config = settings("method=fedavg_bt", *LEARNING)
    assert isinstance(config.method, RewardHeadsMethod)
    (phase,) = config.method.phases(Setting(ROUNDS, FEATURES, config.model, config.encoder))
    return scores(phase, Federation(phase).run(clients()), clients())


def same(one: Contribution, other: Contribution) -> bool:
    return one.scalars == other.scalars and all(torch.equal(t, other.tensors[name]) for name, t in one.tensors.items())


@pytest.mark.parametrize("arm", mostly_slow(ARMS, ["fedvpa"]))
def test_held_out_judgments_never_reach_what_a_client_sends(arm: str) -> None:
    world = trained(arm)
    for phase in (world.phase.selector, world.phase):
        for client in world.clients:
            streams = Streams(0, phase.name, 1, client.client)
            known = phase.local(world.state, client, streams, {})
            changed = dataclasses.replace(client, people=tuple(turned(p, p.test) for p in client.people))
            assert same(phase.local(world.state, changed, streams, {}), known)
            visible = dataclasses.replace(client, people=tuple(turned(p, p.train[:2]) for p in client.people))
            assert not same(phase.local(world.state, visible, streams, {}), known)


@pytest.mark.parametrize("arm", mostly_slow(ARMS, ["fedvpa"]))
def test_no_prediction_of_a_judgment_depends_on_how_it_was_judged(arm: str) -> None:
    world = trained(arm)
    for client, person in world.people:
        context, rest = person.train[:6], person.train[6:]
        for target in (person.test, rest):
            told = dataclasses.replace(
                person, features=person.features.clone(), tie=person.tie.clone(), conflict=~person.conflict
            )
            told.features[target] = told.features[target].flip(1)
            told.tie[target[:1]] = True
            for name in ("accuracy", "accuracy_prior_z", "accuracy_swapped_z"):
                here = world.logits(name, client, person, context, target)
                there = world.logits(name, client, told, context, target)
                # The responses have changed places, and nothing else has.
                torch.testing.assert_close(there, -here, rtol=0, atol=1e-5)


def test_predictions_do_depend_on_how_the_context_was_judged() -> None:
    world = trained("fedvpa")
    for client, person in world.people:
        context = person.train[:6]
        other = turned(person, context)
        here = world.logits("accuracy", client, person, context, person.test)
        assert float((world.logits("accuracy", client, other, context, person.test) - here).abs().max()) > 1e-2


@pytest.mark.parametrize("arm", ARMS)
def test_contexts_and_targets_of_evaluations_are_disjoint(arm: str) -> None:
    world = trained(arm)
    for _, person in world.people:
        for role in (Role.TRAIN, Role.UNSEEN):
            for population, context, target in world.phase._draws(person, role, Streams(3)):
                assert not set(context.tolist()) & set(target.tolist())
                assert set(context.tolist()) <= set(person.train.tolist())
                assert population == "train" or set(target.tolist()) == set(person.test.tolist())


def conflict_accuracy(world: World, name: str, change: Callable[[Judgments, Tensor], Judgments]) -> float:
    """Return the share of held-out conflict pairs that are right, with contexts as ``change`` leaves them."""
    right = []
    for client, person in world.people:
        target = person.test[person.conflict[person.test]]
        shown = change(person, person.train[:8])
        right.append((world.logits(name, client, shown, person.train[:8], target) > 0).float())
    return float(torch.cat(right).mean())


def flip(person: Judgments, index: Tensor) -> Judgments:
    """Return the person with the judgments at ``index`` the other way round."""
    features = person.features.clone()
    features[index] = features[index].flip(1)
    return dataclasses.replace(person, features=features)


@pytest.mark.parametrize("arm", ARMS)
def test_with_permuted_labels_the_context_says_nothing(arm: str) -> None:
    """Accuracy falls to that of the model without latent; were it the label of the target itself, it would stay."""
    world = trained(arm)
    assert conflict_accuracy(world, "accuracy", lambda person, _: person) > 0.9
    assert conflict_accuracy(world, "accuracy", flip) < 0.1
    generator = torch.Generator().manual_seed(0)

    def permute(person: Judgments, index: Tensor) -> Judgments:
        return flip(person, index[torch.rand(len(index), generator=generator) < 0.5])

    permuted = [conflict_accuracy(world, "accuracy", permute) for _ in range(12)]
    plain = scores(world.phase, world.state, world.clients)["test/accuracy_prior_z_conflict"]
    assert sum(permuted) / 12 == pytest.approx(plain, abs=0.15)


@pytest.mark.parametrize("arm", ARMS)
def test_the_other_group_s_latent_is_wrong_where_the_groups_disagree(arm: str) -> None:
    world = trained(arm)
    found = scores(world.phase, world.state, world.clients)
    assert found["test/accuracy_conflict"] > 0.9
    assert found["test/accuracy_swapped_z_conflict"] < 0.5
    # Where they agree it does no harm: the latent is about the conflict.
    agreed = {
        name: 2 * found[f"test/{name}"] - found[f"test/{name}_conflict"] for name in ("accuracy", "accuracy_swapped_z")
    }
    assert agreed["accuracy_swapped_z"] > 0.8


@pytest.mark.parametrize("arm", mostly_slow(ARMS, ["fedvpa"]))
def test_with_the_prior_s_mean_it_is_about_the_plain_reward_model(arm: str) -> None:
    world = trained(arm)
    found, plain = scores(world.phase, world.state, world.clients), bradley_terry()
    assert found["test/accuracy_prior_z"] == pytest.approx(plain["test/accuracy"], abs=0.1)
    assert found["test/accuracy_prior_z_conflict"] == pytest.approx(plain["test/accuracy_conflict"], abs=0.15)
    assert found["test/accuracy"] > plain["test/accuracy"] + 0.15


@pytest.mark.slow
def test_a_latent_that_cannot_read_responses_cannot_follow_anybody() -> None:
    """The paper's decoder shifts all logits alike: in both orders its answer is the same for every latent."""
    world = trained("fedvpa_published")
    assert conflict_accuracy(world, "accuracy", lambda person, _: person) < 0.7
    found = scores(world.phase, world.state, world.clients)
    assert found["latent/linear_probe"] > 0.9
