"""Canary clients: what they contribute is their direction at the clipping bound, whatever units it is clipped in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedalign.contribution import Contribution, total
from fedalign.data.federated import ClientInfo, Role
from fedalign.errors import UserError
from fedalign.federation.account import Account
from fedalign.federation.canary import Canary, CanaryData, CanaryPhase, OneClient, with_canaries
from fedalign.federation.canary_score import ScoringCustodian
from fedalign.federation.directory import ClientDirectory
from fedalign.federation.exposure import exposure_of
from fedalign.federation.messages import Terms
from fedalign.federation.sampling import FractionSampler
from fedalign.federation.shield import shield
from fedalign.federation.site import Site
from fedalign.methods.base import Artefacts
from fedalign.privacy.canaries import Canaries
from fedalign.privacy.client_level import ClientLevel
from fedalign.privacy.mechanism import Gaussian
from fedalign.privacy.metric_release import WithheldMetrics
from fedalign.privacy.noise import SeededNoise
from fedalign.privacy.protection import Protection
from fedalign.rng import Streams
from fedalign.template import Template
from tests.federation.toy import VECTORS, Halfway, ToyData

SILENT = Canaries(count=40, norm=10.0, seed=3, opposed=False)
OPPOSED = Canaries(count=40, norm=10.0, seed=3, opposed=True)
SHAPES = {"delta/w": (20, 5), "count": (30,)}
STREAMS = Streams(5)


class Wide(Halfway):
    """The toy's phase with room for canaries, and a sum that is no delta."""

    name = "wide"

    def initial(self, streams: Streams, artefacts: Artefacts) -> dict[str, torch.Tensor]:
        return {}

    def template(self, state: dict[str, torch.Tensor]) -> Template:
        return Template(SHAPES)


def protection(
    bound: float = 1.0, weight_bound: float = 1.0, scales: dict[str, float] | None = None, noise: float = 0.0
) -> Protection:
    clip = ClientLevel(bound, {}, scales or {}, weight_bound, None)
    return Protection(None, 1e-3, noise, clip, Gaussian(), None, None, WithheldMetrics(), SeededNoise())


def contribution(canaries: Canaries, number: int, privacy: Protection) -> Contribution:
    assert privacy.clip is not None
    phase = CanaryPhase(Wide(), canaries, privacy.clip)
    return phase.local({}, Canary(number, float(canaries.signs[number])), STREAMS, {})


def clipped(canaries: Canaries, number: int, privacy: Protection, bound: float) -> np.ndarray:
    told = contribution(canaries, number, privacy)
    return shield(told, Template(SHAPES), privacy, Terms(bound)).vector


def custodian_of(privacy: Protection, canaries: Canaries, rounds: int = 1) -> ScoringCustodian:
    exposure = exposure_of(Wide(rounds), 130, FractionSampler(1.0), canaries.names, 0, privacy)
    custodian = ScoringCustodian(privacy, lambda _: Account(privacy, [exposure], 0, 0, None), 0)
    custodian.begin(ClientDirectory(canaries.names, [], {}))
    return custodian


@pytest.mark.parametrize("weight_bound", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("scales", [{}, {"count": 0.01, "delta/": 2.0}])
@pytest.mark.parametrize("canaries", [SILENT, OPPOSED])
def test_what_clipping_leaves_of_a_canary(canaries: Canaries, weight_bound: float, scales: dict[str, float]) -> None:
    privacy = protection(0.3, weight_bound, scales)
    held_out = -1.0 if canaries.opposed else 0.0
    for number in range(4):
        sign = 1.0 if canaries.included[number] else held_out
        expected = sign * 0.3 * canaries.direction(number, "wide", 130)
        assert np.allclose(clipped(canaries, number, privacy, 0.3), expected, atol=1e-9)


def test_a_canary_is_ten_times_as_long_as_it_may_be() -> None:
    number = int(np.flatnonzero(SILENT.included)[0])
    assert contribution(SILENT, number, protection(0.3)).norm() == pytest.approx(3.0)
    assert np.linalg.norm(clipped(SILENT, number, protection(0.3), 50.0)) == pytest.approx(3.0)


def test_a_site_with_canaries_serves_its_own_clients_as_before() -> None:
    site = with_canaries(Site(5, 1, [Halfway()], ToyData(), protection()), SILENT)
    roles = [client.role for client in site.data.clients]
    assert len(roles) == 4 + 40 + 1
    assert roles == [*[Role.TRAIN] * 44, Role.UNSEEN]
    assert site.data.shard("bob")[0] == "bob"
    assert site.data.shard(SILENT.names[7]) == Canary(7, float(SILENT.included[7]))
    site.check(client.name for client in site.data.clients)
    phase, plain, state = site.phases[0], Halfway(), {"w": torch.zeros(2, dtype=torch.float64)}
    told, alone = (p.local(state, site.data.shard("bob"), STREAMS, {}) for p in (phase, plain))
    assert torch.equal(told.tensors["delta/w"], alone.tensors["delta/w"])
    assert told.scalars == alone.scalars
    assert not phase.evaluate(state, Canary(0, 1.0), STREAMS).scalars


@pytest.mark.parametrize("canaries", [SILENT, OPPOSED])
@pytest.mark.parametrize("scales", [{}, {"count": 0.01}])
def test_scores_are_inner_products_with_all_that_was_released(canaries: Canaries, scales: dict[str, float]) -> None:
    privacy = protection(0.3, scales=scales)
    template, custodian = Template(SHAPES), custodian_of(privacy, canaries, rounds=2)
    told = total(
        shield(contribution(canaries, number, privacy), template, privacy, Terms(0.3)).to_contribution(template)
        for number in range(canaries.count)
    )
    for number in (1, 2):
        custodian.release(Wide(2), {}, number, canaries.names, told)
    rows = np.stack([canaries.direction(number, "wide", 130) for number in range(canaries.count)])
    signs = np.where(canaries.included, 1.0, -float(canaries.opposed))
    expected = rows @ (rows.T @ signs)
    scores = custodian.scores(canaries)
    assert np.allclose(scores.included, expected[canaries.included], atol=1e-5)
    assert np.allclose(scores.held_out, expected[~canaries.included], atol=1e-5)
    assert scores.fair_coins


def test_noise_counts_in_units_of_the_bound() -> None:
    custodian = custodian_of(protection(0.3, noise=2.0), SILENT)
    custodian.release(Wide(1), {}, 1, SILENT.names, Contribution())
    scores = custodian.scores(SILENT)
    every = np.concatenate([scores.included, scores.held_out])
    assert every.std() == pytest.approx(2.0, rel=0.3)


def test_a_run_that_released_nothing_cannot_be_scored() -> None:
    with pytest.raises(UserError, match="released nothing"):
        custodian_of(protection(), SILENT).scores(SILENT)


def test_one_client_is_alone() -> None:
    (client,) = OneClient(ToyData()).clients
    assert (client.name, client.role) == ("ada", Role.TRAIN)
    assert OneClient(ToyData()).shard("ada")[0] == "ada"


def test_data_keep_what_is_known_of_them() -> None:
    data = ToyData()
    assert CanaryData(data, SILENT).dropped is data.dropped


STAGED = Canaries(40, 10.0, 3, False, (("rl",), ("sft",)))


def test_canaries_are_clients_of_their_stages() -> None:
    directory = ClientDirectory.of(CanaryData(ToyData(), STAGED).clients)
    theirs = [name for place, name in enumerate(STAGED.names) if place % 2]
    assert directory.training_for("sft") == sorted([*VECTORS, *theirs])


def test_a_canary_phase_is_in_everything_else_the_phase_itself() -> None:
    class Served(Halfway):
        stage = "sft"
        evaluated = frozenset({Role.UNSEEN})

        def users(self, shard: object) -> tuple[str, ...]:
            return ("ann",)

        def examples(self, shard: object) -> tuple[str, ...]:
            return ("ann/1",)

        def broadcast(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {"w": state["w"]}

    privacy = protection()
    assert privacy.clip is not None
    phase, canary = CanaryPhase(Served(), SILENT, privacy.clip), Canary(0, 1.0)
    assert (phase.stage, phase.evaluated) == ("sft", frozenset({Role.UNSEEN}))
    assert (phase.users("x"), phase.examples("x")) == (("ann",), ("ann/1",))
    assert (phase.users(canary), phase.examples(canary)) == ((), ())
    assert set(phase.broadcast({"w": torch.zeros(1), "kept": torch.zeros(1)})) == {"w"}


def test_canaries_are_scored_by_the_phases_that_they_are_in() -> None:
    """One of stage sft says nothing in the phase of rl, and is not judged by it."""
    privacy = protection(0.3)
    assert privacy.clip is not None
    phases = [Wide(2), Wide(1)]
    for phase, (name, stage) in zip(phases, (("first", "sft"), ("second", "rl")), strict=True):
        phase.name, phase.stage = name, stage
    directory = ClientDirectory.of(CanaryData(ToyData((), ()), STAGED).clients)
    exposures = [exposure_of(p, 130, FractionSampler(1.0), directory.training_for(p.stage), 0, privacy) for p in phases]
    custodian = ScoringCustodian(privacy, lambda _: Account(privacy, exposures, 0, 0, None, 40), 0)
    custodian.begin(directory)
    template, expected = Template(SHAPES), np.zeros(40)
    for phase in phases:
        within = np.flatnonzero(STAGED.within(phase.stage))
        canary = CanaryPhase(phase, STAGED, privacy.clip)
        told = [canary.local({}, Canary(n, float(STAGED.signs[n])), STREAMS, {}) for n in within]
        summed = total(shield(each, template, privacy, Terms(0.3)).to_contribution(template) for each in told)
        for number in range(1, phase.rounds + 1):
            custodian.release(phase, {}, number, [STAGED.names[n] for n in within], summed)
        rows = np.stack([STAGED.direction(number, phase.name, 130) for number in range(40)])
        expected[within] = (rows @ (rows[within].T @ STAGED.signs[within]))[within]
    scores = custodian.scores(STAGED)
    assert np.allclose(scores.included, expected[STAGED.included], atol=1e-5)
    assert np.allclose(scores.held_out, expected[~STAGED.included], atol=1e-5)


def test_the_one_client_holds_as_many_stages_as_any() -> None:
    class Staged(ToyData):
        held: dict[str, tuple[str, ...]]

        @property
        def clients(self) -> list[ClientInfo]:
            return [replace(c, stages=self.held[c.name]) for c in super().clients]

    data = Staged()
    data.held = {"ada": ("sft",), "bob": ("sft", "rl"), "cid": (), "dee": (), "uma": ()}
    assert [c.name for c in OneClient(data).clients] == ["cid"]
    data.held = {**data.held, "cid": ("rl",), "dee": ("rl", "sft")}
    assert [c.name for c in OneClient(data).clients] == ["bob"]
