"""Federated k-means: by sums alone it goes where k-means on all points would."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from fedalign.contribution import total
from fedalign.data.federated import Role
from fedalign.errors import UserError
from fedalign.methods.base import Participation
from fedalign.methods.start_phase import CENTRES, Signatures, distances, first_centres
from fedalign.methods.type_start import borda

from .ranking_worlds import PROBE, Rounds, same, scores, shard, silo, starting, world

PEOPLE = 24


def points_of(people: int = PEOPLE) -> torch.Tensor:
    return torch.cat([borda(client.probe).flatten(1) for client in world(people, 2)]).double()


def test_the_first_round_draws_centres_from_the_points_mean_and_variance() -> None:
    start, _ = starting("method.start.restarts=2000")
    rounds = Rounds(start)
    rounds.round(1, world(PEOPLE, 2))
    points, tried = points_of(), rounds.state["tried"]
    assert tried.shape == (2000, 2, 6)
    drawn = tried.flatten(0, 1)
    values, vectors = np.linalg.eigh(np.cov(points.numpy().T, bias=True))
    torch.testing.assert_close(drawn.mean(0), points.mean(0), atol=0.05, rtol=0)
    # In the two directions of largest variance, with that variance; in no other.
    along = (drawn - drawn.mean(0)) @ torch.from_numpy(vectors.copy())
    assert along.var(0).numpy()[-2:] == pytest.approx(values[-2:], rel=0.1)
    assert float(along[:, :-2].abs().max()) < 1e-6


@given(seed=st.integers(0, 5))
@settings(max_examples=4)
def test_iterations_are_those_of_k_means_from_the_same_centres(seed: int) -> None:
    start, _ = starting()
    clients = world(PEOPLE, 2)
    rounds = Rounds(start, seed=seed)
    rounds.round(1, clients)
    begun, points = rounds.state["tried"].numpy().copy(), points_of().numpy()
    for number in range(2, 5):
        rounds.round(number, clients)
    found = rounds.state["tried"].numpy()
    for place in range(2):
        # tol=0 and no early stop other than convergence, at which further iterations change nothing.
        oracle = KMeans(2, init=begun[place], n_init=1, max_iter=3, tol=0, algorithm="lloyd").fit(points)
        labels = ((points[:, None] - begun[place]) ** 2).sum(2).argmin(1)
        if len(set(labels)) < 2:
            continue  # sklearn moves an empty cluster elsewhere
        np.testing.assert_allclose(found[place], oracle.cluster_centers_, atol=1e-9)


def test_the_centres_of_least_spread_are_kept() -> None:
    start, _ = starting("method.start.restarts=5")
    clients, rounds = world(PEOPLE, 2), Rounds(start)
    for number in range(1, 4):
        rounds.round(number, clients)
    before, points = rounds.state["tried"], points_of()
    spread = [float(distances(points, centres).min(1).values.sum()) for centres in before]
    rounds.round(4, clients)
    best = int(np.argmin(spread))
    assert torch.equal(rounds.state[CENTRES], rounds.state["tried"][best])
    after = float(distances(points, rounds.state[CENTRES]).min(1).values.sum())
    assert after <= min(spread) + 1e-12


def test_a_cluster_without_anybody_stays_where_it_is() -> None:
    start, _ = starting()
    rounds = Rounds(start)
    rounds.round(1, world(4, 2))
    far = rounds.state["tried"].clone()
    far[:, 1] = 100.0
    rounds.state = {**rounds.state, "tried": far}
    rounds.round(2, world(4, 2))
    assert torch.equal(rounds.state["tried"][:, 1], far[:, 1])
    assert not torch.equal(rounds.state["tried"][:, 0], far[:, 0])
    assert torch.isfinite(rounds.state["tried"]).all()


@pytest.mark.parametrize("kind", ["method/start=probe", "method/start=deltas"])
def test_a_silo_sends_the_sum_of_what_its_annotators_would(kind: str) -> None:
    start, _ = starting(kind)
    apart, together = Rounds(start), Rounds(starting(kind)[0])
    for number in (1, 2, 3):
        one, other = total(apart.round(number, world(6))), total(together.round(number, [silo(6)]))
        assert one.tensors.keys() == other.tensors.keys()
        for name, tensor in one.tensors.items():
            torch.testing.assert_close(other.tensors[name], tensor, rtol=1e-5, atol=1e-6)


def test_only_names_of_the_template_are_sent_and_everybody_is_asked() -> None:
    start, _ = starting()
    rounds = Rounds(start)
    assert start.participation is Participation.ALL
    assert start.rounds == 4
    for number in (1, 2):
        template = start.template(rounds.state)
        for reply in rounds.round(number, world(4, 2)):
            template.check(reply)
            assert not reply.scalars


def test_signatures_are_worked_out_once_for_a_seed() -> None:
    start, _ = starting("method/start=deltas")
    signatures: Signatures = start._signatures  # what the phases share
    client = shard()
    first = signatures.of(client, 0)
    assert signatures.of(client, 0) is first
    other = signatures.of(client, 1)
    assert not torch.equal(first, other)
    assert torch.equal(signatures.of(client, 0), first)


def test_clusters_of_a_clear_world_are_the_true_types() -> None:
    clients = world(PEOPLE, 2, menus=12)
    start, _ = starting("method.start.dimensions=36", "method.start.restarts=8", "method.start.iterations=6")
    state = Rounds(start).run(clients)
    found = scores(start, state, clients)
    assert found["test/type_accuracy"] == 1.0
    points = torch.cat([borda(client.probe).flatten(1) for client in clients]).double()
    assert found["test/spread"] == pytest.approx(float(distances(points, state[CENTRES]).min(1).values.mean()))
    assert same(state, Rounds(start).run(clients))


def test_an_unseen_client_need_not_have_been_asked() -> None:
    start, _ = starting(*PROBE)
    start.check(shard(menus=0, role=Role.UNSEEN))
    with pytest.raises(UserError, match="annotators without answers to a probe"):
        start.check(shard(menus=0))


def test_points_in_one_place_give_centres_there() -> None:
    point = torch.tensor([1.0, 0.5, -2.0], dtype=torch.float64)
    moment = 7 * torch.outer(point, point)
    found = first_centres(moment, (3, 2, 2), torch.Generator().manual_seed(0))
    torch.testing.assert_close(found, point[1:].expand(3, 2, 2), atol=1e-6, rtol=0)
