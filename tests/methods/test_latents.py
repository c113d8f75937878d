"""The last round, in which latents are collected: nothing is learnt, and groups' latents can be exchanged."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedalign.contribution import State, total
from fedalign.data.pairs import PairShard, Role
from fedalign.methods.base import Needs, Participation
from fedalign.methods.latents import (
    ACTIVE,
    GROUP_MEAN,
    LATENT,
    LatentsPhase,
    activity,
    group_of,
    moments,
    opposed,
)
from fedalign.methods.selector import SelectorPhase
from fedalign.metrics.latent import cluster_agreement, linear_probe, silhouette
from fedalign.metrics.record import decode
from fedalign.rng import Streams

from .judgments import linear_person, linear_world, shard
from .selectors import LATENT as DIM
from .selectors import Federation, phases, scores


@pytest.fixture
def collected() -> tuple[LatentsPhase, State, State, list[PairShard]]:
    """Give the phase, its state before and after, and the clients, one of which is a silo."""
    first, last = phases(rounds=1)
    assert isinstance(last, LatentsPhase)
    people = [linear_person(f"p{n}", ("left", "right")[n % 2], 8, 3, n) for n in range(6)]
    world = [shard(*people[:2], client="silo"), *(shard(person) for person in people[2:])]
    before = Federation(first).run(world)
    federation = Federation(last, artefacts={"selector": before})
    federation.round(1, world)
    return last, before, federation.state, world


def latents(state: State) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if name.startswith(LATENT)}


def test_it_is_a_diagnosis_for_which_everybody_is_asked_once() -> None:
    last = phases()[-1]
    assert (last.name, last.rounds, last.diagnostic) == ("latents", 1, True)
    assert (last.needs, last.participation) == (Needs.INDIVIDUAL, Participation.ALL)


def test_the_model_is_not_changed(collected: tuple[LatentsPhase, State, State, list[PairShard]]) -> None:
    _, before, after, _ = collected
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_everybody_s_posterior_mean_is_collected_by_group(
    collected: tuple[LatentsPhase, State, State, list[PairShard]],
) -> None:
    phase, before, after, world = collected
    phase.load(before)
    expected = {}
    for each in world:
        for person in each.people:
            with torch.no_grad():
                mean, _ = phase.selector.posterior(person, person.train[:3])
            expected[f"{LATENT}{person.group}/{person.person}"] = mean[0]
    found = latents(after)
    assert found.keys() == expected.keys()
    for name, mean in expected.items():
        torch.testing.assert_close(found[name], mean)
        assert not found[name].is_inference()
    for group in ("left", "right"):
        own = torch.stack([tensor for name, tensor in found.items() if group_of(name) == group])
        torch.testing.assert_close(after[GROUP_MEAN + group], own.mean(0))


def test_a_contribution_holds_latents_and_nothing_else(
    collected: tuple[LatentsPhase, State, State, list[PairShard]],
) -> None:
    phase, before, _, world = collected
    reply = phase.local(before, world[0], Streams(0, "latents", 1, "silo"), {})
    assert set(reply.tensors) == {f"{LATENT}left/p0", f"{LATENT}right/p1"}
    assert {tensor.shape for tensor in reply.tensors.values()} == {(DIM,)}
    assert dict(reply.scalars) == {}


def test_accuracy_with_the_other_group_s_latent_is_known_afterwards_only(
    collected: tuple[LatentsPhase, State, State, list[PairShard]],
) -> None:
    phase, before, after, world = collected
    unaware, aware = scores(phase, before, world), scores(phase, after, world)
    assert not [name for name in unaware if "swapped" in name]
    assert {"test/accuracy_swapped_z", "train/accuracy_swapped_z"} <= set(aware)
    assert {name: aware[name] for name in unaware} == unaware


def test_the_structure_of_the_latents_is_told_once(
    collected: tuple[LatentsPhase, State, State, list[PairShard]],
) -> None:
    phase, _, after, world = collected
    found = latents(after)
    means, groups = torch.stack([found[name] for name in sorted(found)]), [group_of(name) for name in sorted(found)]
    summed = total(phase.evaluate(after, each, Streams(0, "latents", 1, each.client)) for each in world)
    told = {item.name: item for item in decode(summed.scalars) if item.name.startswith("latent/")}
    assert {item.n for item in told.values()} == {1.0}
    values = {
        "latent/linear_probe": linear_probe(means, groups),
        "latent/silhouette": silhouette(means, groups),
        "latent/cluster_agreement": cluster_agreement(means, groups, 2, seed=0),
    }
    assert {name: item.total for name, item in told.items()} == pytest.approx(
        {name: value for name, value in values.items() if value is not None}
    )


def test_the_opposed_group_is_the_farthest() -> None:
    state = {
        GROUP_MEAN + "a": torch.tensor([0.0, 0.0]),
        GROUP_MEAN + "b": torch.tensor([1.0, 0.0]),
        GROUP_MEAN + "c": torch.tensor([0.0, -3.0]),
    }
    for group, expected in (("a", [0.0, -3.0]), ("b", [0.0, -3.0]), ("c", [1.0, 0.0])):
        other = opposed(state, group)
        assert other is not None
        assert other.tolist() == expected
    assert opposed(state, "d") is None
    assert opposed({GROUP_MEAN + "a": torch.zeros(2)}, "a") is None


def test_groups_may_have_any_name() -> None:
    assert group_of(f"{LATENT}left/a person/with a slash") == "left"


def test_activity_is_a_variance_over_people_however_they_are_spread() -> None:
    (phase, *_) = phases(rounds=1)
    assert isinstance(phase, SelectorPhase)
    world = linear_world(5, 8, 2)
    state = Federation(phase).run(world)
    phase.load(state)
    with torch.no_grad():
        summed = total(moments(phase, state, each, Streams(0)) for each in world)
        means = torch.cat([phase.posterior(p, p.train[:3])[0] for each in world for p in each.people]).double()
    assert float(summed.tensors["moments/n"]) == 5.0
    torch.testing.assert_close(summed.tensors["moments/sum"], means.sum(0))
    torch.testing.assert_close(summed.tensors["moments/square"], means.square().sum(0))
    assert activity(summed.tensors) == {"test/active_units": float((means.var(0, correction=0) > ACTIVE).sum())}
    assert activity({}) == {}


def test_strangers_add_no_moments() -> None:
    (phase, *_) = phases(rounds=1)
    assert isinstance(phase, SelectorPhase)
    (stranger,) = linear_world(1, 8, 2, role=Role.UNSEEN)
    phase.load(phase.initial(Streams(0), {}))
    with torch.no_grad():
        told = moments(phase, {}, stranger, Streams(0))
    assert dict(told.tensors) == {}
    assert {item.name for item in decode(told.scalars)} == {"unseen/kl"}
