"""Clients trained side by side end where each would alone: the loop, on PyTorch's own optimisers, is the oracle."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedalign.contribution import Contribution, State
from fedalign.data.pairs import PairShard
from fedalign.methods.base import Memory, Phase
from fedalign.methods.local_training import LocalTraining, train
from fedalign.methods.stacked_training import train_stacked
from fedalign.models.stacked import Stack
from fedalign.rng import Streams

from .judgments import linear_world
from .judgments import shard as pair_shard
from .selectors import selector
from .surveys import group, shard
from .test_pluralllm import Make as MakeGPO
from .test_pluralllm import make as make_gpo  # noqa: F401 - a fixture
from .test_pluralllm import prior
from .test_reward_heads import Make as MakeReward
from .test_reward_heads import make as make_reward  # noqa: F401 - a fixture

LOCAL = LocalTraining(3, "sgd", 0.1, "constant", 2, 0.1, "persist", 0.0, None)


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, 1)).double()


class World:
    """Clients with different numbers of rows, trained in a loop and side by side."""

    def __init__(self, rows: Sequence[int], local: LocalTraining, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.network, self.local = network(), local
        self.stack = Stack(self.network)
        self.state = {name: p.detach().clone() for name, p in self.network.named_parameters()}
        self.x = [torch.randn(count, 3, generator=generator, dtype=torch.float64) for count in rows]
        self.y = [torch.randn(count, 1, generator=generator, dtype=torch.float64) for count in rows]
        self.loop: list[Memory] = [{} for _ in rows]
        self.together: list[Memory] = [{} for _ in rows]

    def alone(self, client: int, number: int) -> tuple[State, float]:
        def loss(step: int) -> Tensor:
            error: Tensor = self.network(self.x[client]) - self.y[client]
            return (step + 1) * error.square().mean()

        steps = self.local.steps
        value = train(self.network, self.state, loss, self.local, steps * number, steps * 4, self.loop[client])
        return {name: p.detach().clone() for name, p in self.network.named_parameters()}, value

    def round(self, clients: Sequence[int], number: int) -> None:
        """Train some clients both ways, and compare parameters, losses and what is remembered."""
        x = nn.utils.rnn.pad_sequence([self.x[c] for c in clients], batch_first=True)
        y = nn.utils.rnn.pad_sequence([self.y[c] for c in clients], batch_first=True)
        counts = torch.tensor([len(self.x[c]) for c in clients])
        known = torch.arange(x.shape[1]) < counts[:, None]

        def losses(step: int) -> Tensor:
            errors = (self.stack.network(x) - y).square().squeeze(-1)
            return (step + 1) * torch.where(known, errors, 0.0).sum(1) / counts

        steps, memories = self.local.steps, [self.together[c] for c in clients]
        outcome = train_stacked(self.stack, self.state, losses, self.local, steps * number, steps * 4, memories)
        assert not outcome.failures
        for place, client in enumerate(clients):
            expected, value = self.alone(client, number)
            assert outcome.losses[place] == pytest.approx(value, rel=1e-9)
            for name, tensor in self.stack.one(place).items():
                torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-9, msg=name)
            assert self.together[client].keys() == self.loop[client].keys()
            for key, kept in self.together[client].items():
                torch.testing.assert_close(kept, self.loop[client][key], rtol=1e-7, atol=1e-9, msg=key)


@settings(max_examples=12)
@given(
    rows=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    optimizer=st.sampled_from(["adam", "sgd"]),
    schedule=st.sampled_from(["constant", "cosine", "cosine_periodic"]),
    kept=st.sampled_from(["persist", "reset"]),
    mu=st.sampled_from([0.0, 0.5]),
    bound=st.sampled_from([None, 0.3, 100.0]),
    seed=st.integers(0, 99),
)
def test_clients_end_where_the_loop_leaves_them(
    rows: list[int], optimizer: str, schedule: str, kept: str, mu: float, bound: float | None, seed: int
) -> None:
    """Over rounds that not everybody takes part in, so that moments of different ages meet."""
    changes: dict[str, Any] = {
        "optimizer": optimizer, "schedule": schedule, "optimizer_state": kept, "proximal_mu": mu,
        "max_grad_norm": bound, "lr": 0.05,
    }  # fmt: skip
    world = World(rows, dataclasses.replace(LOCAL, **changes), seed)
    everybody = list(range(len(rows)))
    for number, clients in enumerate(([everybody[0]], everybody, everybody[::-1], everybody[::2])):
        world.round(clients, number)


def test_memories_hold_tensors_of_their_own() -> None:
    """A part of the stack would change with it, and keep all of it alive."""
    world = World([2, 3], dataclasses.replace(LOCAL, optimizer="adam"))
    world.round([0, 1], 0)
    before = [{key: kept.clone() for key, kept in memory.items()} for memory in world.together]
    world.round([1], 1)
    assert all(torch.equal(world.together[0][key], kept) for key, kept in before[0].items())
    assert not all(torch.equal(world.together[1][key], kept) for key, kept in before[1].items())
    for memory in world.together:
        assert all(kept.untyped_storage().nbytes() == kept.nbytes for kept in memory.values())


def test_a_client_whose_loss_is_no_number_fails_alone() -> None:
    world = World([3, 3, 3], dataclasses.replace(LOCAL, optimizer="adam", max_grad_norm=1.0, proximal_mu=0.1))
    expected = [world.alone(client, 0)[0] for client in range(3)]
    x, y = torch.stack(world.x), torch.stack(world.y)
    y[1, 0] = math.nan

    def losses(step: int) -> Tensor:
        error: Tensor = world.stack.network(x) - y
        return (step + 1) * error.square().mean((1, 2))

    outcome = train_stacked(world.stack, world.state, losses, world.local, 0, 12, world.together)
    assert outcome.failures.keys() == {1}
    assert "local loss is nan; lower the lr" in str(outcome.failures[1])
    assert world.together[1] == {}
    for place in (0, 2):
        for name, tensor in world.stack.one(place).items():
            torch.testing.assert_close(tensor, expected[place][name], rtol=0, atol=1e-9)


def agree(phase: Phase, state: State, shards: Sequence[Any], atol: float = 1e-6) -> None:  # type: ignore[type-arg]
    """Compare contributions and memories of local work done one by one and side by side, over rounds of one state."""
    alone: list[Memory] = [{} for _ in shards]
    together: list[Memory] = [{} for _ in shards]
    for number in (1, 2):
        streams = [Streams(3, phase.name, number, each.client) for each in shards]
        expected = [phase.local(state, *each) for each in zip(shards, streams, alone, strict=True)]
        stacked = phase.local_many(state, shards, streams, together)
        assert len(stacked) == len(shards)
        assert not stacked.failures
        for place, told in enumerate(expected):
            same(stacked.one(place), told, atol)
            assert together[place].keys() == alone[place].keys()
            for key, kept in together[place].items():
                torch.testing.assert_close(kept, alone[place][key], rtol=1e-5, atol=atol, msg=key)


def same(one: Contribution, other: Contribution, atol: float = 1e-6) -> None:
    assert one.tensors.keys() == other.tensors.keys()
    assert one.scalars == pytest.approx(other.scalars, rel=1e-5, abs=atol)
    for name in one.tensors:
        torch.testing.assert_close(one.tensors[name], other.tensors[name], rtol=1e-5, atol=atol, msg=name)


@pytest.mark.parametrize(
    "changes",
    [
        ("method.prior=none",),
        ("method.prior=federated", "method.weight=points", "method.local.proximal_mu=0.3"),
        ("method.prior=none", "method.loss_reduction=sum", "method.local.max_grad_norm=0.1", "model.input_scale=raw"),
    ],
    ids=["plain", "prior", "sum"],
)
def test_group_preference_predictors_agree(make_gpo: MakeGPO, changes: tuple[str, ...]) -> None:  # noqa: F811
    """Also where one client holds several groups, and groups differ in size."""
    _, phase = make_gpo(*changes)
    assert phase.stacked_size() == sum(p.numel() for p in phase._network.parameters())
    sizes = [[2, 3, 4, 2, 5], [3, 2, 4], [2] * 7, [4, 4, 2]]
    # A question offers everybody as many answers.
    ids = [[f"{size} answers, {place}" for place, size in enumerate(each)] for each in sizes]
    groups = [group(f"g{place}", each, place, 1, ids[place]) for place, each in enumerate(sizes)]
    shards = [shard(groups[0]), shard(groups[1], groups[2]), shard(groups[3])]
    known = {"question_prior": prior(shards)} if "method.prior=federated" in changes else {}
    agree(phase, phase.initial(Streams(0, "gpo"), known), shards)


PERSIST = "method.local.optimizer_state=persist"


def people() -> list[PairShard]:
    """Return clients whose people differ in how much they have judged; the last has two."""
    found = [
        dataclasses.replace(linear_world(2, train, 1, seed)[seed % 2].people[0], person=f"person {seed}")
        for seed, train in enumerate([3, 6, 2, 9, 4])
    ]
    return [*(pair_shard(person) for person in found[:3]), pair_shard(*found[3:], client="silo")]


@pytest.mark.parametrize(
    "changes",
    [
        ("method=fedvpl", "model.body.dropout=0.2", "model.base_dropout=0.4"),
        ("method=fedvpa", "method.prototypes.labels=nearest", "method.local.proximal_mu=0.1"),
        ("method=fedvpa_sums", "method.divergence.weights=gumbel", "model.aggregation=attention"),
        ("method=fedvpa_sums", "method.divergence.form=mixture", "model.decoder=mlp", "model.evidence=false"),
        ("method=fedvpl", "model.head=selector", "model.decoder=additive", "model.body.layers=2"),
        # Evidence has a number among its parameters, and so have its moments.
        ("method=fedvpa_sums", "model.evidence=true", "method.local.optimizer=adam", PERSIST),
    ],
    ids=["dropout", "bank", "gumbel", "mixture", "selector", "persist"],
)
def test_variational_selectors_agree(changes: tuple[str, ...]) -> None:
    """Also where one client holds several people, and people differ in how much they have judged."""
    phase = selector(*changes)
    assert phase.stacked_size() == sum(p.numel() for p in phase.network.parameters())
    shards = people()
    state = phase.initial(Streams(0, "selector"), {})
    if not phase.method.prior.silent:
        # A prior that has heard of somebody.
        told = [phase.local(state, each, Streams(0, "selector", 1, each.client), {}) for each in shards]
        state |= phase.method.prior.update_each(state, told)
        state |= {name: torch.ones_like(tensor) for name, tensor in state.items() if name == "mixture/n"}
    # Adam makes more of rounding where a gradient is small.
    agree(phase, state, shards, 1e-4 if PERSIST in changes else 1e-6)


@pytest.mark.parametrize(
    ("arm", "changes"),
    [
        ("fedavg_bt", ("model.body.dropout=0.2",)),
        ("oracle_group", ("model.body.dropout=0.2", "model.head=selector")),
        ("fedem", ("method.weight=judgments",)),
        ("pal", ("method.local.optimizer_state=persist",)),
    ],
)
def test_reward_heads_agree(make_reward: MakeReward, arm: str, changes: tuple[str, ...]) -> None:  # noqa: F811
    phase = make_reward(arm, *changes)
    assert phase.stacked_size() == sum(p.numel() for p in phase.network.parameters())
    shards = people()
    agree(phase, phase.initial(Streams(0, "reward"), {}), shards)
