"""Where types begin: apart, alike where that is asked for, and what annotators are told apart by."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedalign.contribution import State
from fedalign.data.rankings import RankingShard
from fedalign.errors import UserError
from fedalign.methods.type_heads import HeadTypes
from fedalign.methods.type_model import TypeModel, type_of
from fedalign.methods.type_start import ClusteredStart, DeltaStart, EqualStart, ProbeStart, RandomStart, borda, shaken
from fedalign.models.utility import LinearUtility
from fedalign.objectives.plackett_luce import orders_of, ranking_log_likelihood
from fedalign.rng import Streams

from .ranking_worlds import FEATURES, method_of, same, shard, silo, starting

HEADS = HeadTypes(LinearUtility(1.0), FEATURES)
SIZES = (6, 3, 2, 2, 0.0)


@dataclasses.dataclass(frozen=True)
class Given(ClusteredStart):
    """Signatures that a test gives."""

    def raw(self, model: TypeModel, base: State, shard: RankingShard, index: Tensor, seed: int) -> Tensor:
        return shard.features.flatten(1)


def deltas(steps: int = 1, **changes: object) -> DeltaStart:
    start = method_of(starting("method/start=deltas")[1]).start
    assert isinstance(start, DeltaStart)
    local = dataclasses.replace(start.local, steps=steps, max_grad_norm=None)
    return dataclasses.replace(start, batch=100, local=local, dimensions=FEATURES, **changes)  # type: ignore[arg-type]


def brute_borda(tiers: list[int]) -> list[float]:
    """Return how many more responses each beats than loses to, of all pairs, over twice the others."""
    there = [place for place, tier in enumerate(tiers) if tier >= 0]
    scores = [0.0] * len(tiers)
    for one, other in itertools.permutations(there, 2):
        scores[one] += (tiers[one] < tiers[other]) - (tiers[one] > tiers[other])
    return [score / (2 * max(1, len(there) - 1)) for score in scores]


@given(st.lists(st.lists(st.integers(-1, 3), min_size=4, max_size=4), min_size=1, max_size=5))
def test_borda_is_what_counting_pairs_gives(menus: list[list[int]]) -> None:
    found = borda(torch.tensor(menus))
    torch.testing.assert_close(found, torch.tensor([brute_borda(menu) for menu in menus]))
    torch.testing.assert_close(found.sum(-1), torch.zeros(len(menus)), atol=1e-6, rtol=0)


def test_borda_of_a_strict_order_is_even_from_a_half_to_minus_a_half() -> None:
    assert borda(torch.tensor([[2, 0, 1], [1, -1, 0]])).tolist() == [[-0.5, 0.5, 0.0], [-0.5, 0.0, 0.5]]


def test_a_random_start_draws_types_apart_and_an_equal_one_alike() -> None:
    apart, alike = RandomStart(0.5).types(HEADS, 3, Streams(0)), EqualStart(True).types(HEADS, 3, Streams(0))
    assert not same(type_of(apart, 0), type_of(apart, 1))
    assert not same(type_of(apart, 1), type_of(apart, 2))
    assert same(type_of(alike, 0), type_of(alike, 1))
    assert same(type_of(alike, 1), type_of(alike, 2))
    assert same(apart, RandomStart(0.5).types(HEADS, 3, Streams(0)))
    assert not same(apart, RandomStart(0.5).types(HEADS, 3, Streams(1)))


def test_the_first_types_do_not_depend_on_how_many_there_are() -> None:
    two, three = (RandomStart(0.5).types(HEADS, number, Streams(0)) for number in (2, 3))
    assert same(two, {name: three[name] for name in two})


@pytest.mark.parametrize(("start", "key"), [(EqualStart(False), "method/start=equal"), (RandomStart(0.0), "scale=0")])
def test_a_start_that_leaves_types_alike_is_refused(start: EqualStart | RandomStart, key: str) -> None:
    with pytest.raises(UserError, match=key) as refusal:
        start.check_types(2)
    assert "\n" not in str(refusal.value)
    start.check_types(1)


def test_what_shows_the_failure_is_allowed() -> None:
    EqualStart(True).check_types(2)
    RandomStart(0.1).check_types(2)


def test_a_shake_is_relative_to_the_size_of_all_parameters() -> None:
    state = {"w": torch.full((4000,), 3.0), "b": torch.zeros(4000)}
    moved = shaken(state, 0.1, Streams(0), "test")
    expected = 0.1 * (9.0 / 2) ** 0.5
    for name in state:
        assert float((moved[name] - state[name]).std()) == pytest.approx(expected, rel=0.1)
    assert same(shaken(state, 0.0, Streams(0), "test"), state)


def test_a_probe_s_signature_is_its_scores_filled_up_with_zeros() -> None:
    client = shard("c", ("p0", "p1"), ("a", "b"), menus=1)
    found = ProbeStart(*SIZES).signatures(HEADS, {}, client, client.train, 0)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found[:, :3].float(), borda(client.probe[:, 0]))
    assert not found[:, 3:].any()


def test_annotators_who_were_asked_nothing_are_refused() -> None:
    with pytest.raises(UserError, match=r"'ann' has annotators without answers to a probe; set data\.probe_menus"):
        ProbeStart(*SIZES).check(shard(menus=0))
    ProbeStart(*SIZES).check(shard(menus=1))


def test_a_projection_is_one_matrix_for_all_clients_and_nearly_keeps_distances() -> None:
    start, features = Given(400, 1, 1, 1, 0.0), torch.randn(4, 9000, generator=torch.Generator().manual_seed(0))
    client = dataclasses.replace(shard(), features=features[:, None, :])
    found = start.signatures(HEADS, {}, client, client.train, 3)
    alone = start.signatures(HEADS, {}, dataclasses.replace(client, features=features[1:2, None, :]), client.train, 3)
    torch.testing.assert_close(found[1:2], alone)
    torch.testing.assert_close(torch.pdist(found), torch.pdist(features.double()), rtol=0.15, atol=0)
    assert not torch.allclose(found, start.signatures(HEADS, {}, client, client.train, 4))


def test_a_delta_of_one_step_is_the_direction_of_the_annotator_s_own_gradient() -> None:
    client = silo(2)
    base = {"score.weight": torch.tensor([[0.3, -0.2, 0.1]])}
    found = deltas().raw(HEADS, base, client, client.train, 0)
    for number in (0, 1):
        own = client.train[client.owner[client.train] == number]
        weight = base["score.weight"][0].clone().requires_grad_()
        loss = -ranking_log_likelihood(client.features[own] @ weight, orders_of(client.tiers[own])).mean()
        (gradient,) = torch.autograd.grad(loss, weight)
        torch.testing.assert_close(found[number], torch.nn.functional.normalize(-gradient, dim=0), rtol=1e-4, atol=1e-5)


def test_a_delta_tells_nothing_of_other_annotators_or_of_test_judgments_or_types() -> None:
    start, base = deltas(steps=3), {"score.weight": torch.tensor([[0.3, -0.2, 0.1]])}
    start = dataclasses.replace(start, batch=3)
    together = start.signatures(HEADS, base, silo(3), silo(3).train, 0)
    for number in range(3):
        alone = shard(f"device-{number}", (f"p{number}",), (["a", "b", "a"][number],))
        features = alone.features.clone()
        features[alone.test] = torch.randn(features[alone.test].shape, generator=torch.Generator().manual_seed(1))
        changed = dataclasses.replace(alone, features=features, types=(None,))
        found = start.signatures(HEADS, base, changed, changed.train, 0)
        torch.testing.assert_close(found, together[number : number + 1])
    assert not torch.allclose(together[0], together[1])
