"""Latent types under a guarantee: what leaves a client, how each kind of run ends, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedalign.config import parse, resolve
from fedalign.contribution import WEIGHT, Contribution, total
from fedalign.errors import UserError
from fedalign.federation.messages import Terms
from fedalign.federation.shield import Shielded, shield
from fedalign.methods.em import MASS, SHARES
from fedalign.methods.type_model import PRIOR, TYPES
from fedalign.privacy.metric_release import OpenMetrics, WithheldMetrics
from fedalign.privacy.protection import Protection
from fedalign.rng import Streams
from fedalign.run import start
from tests.methods.ranking_worlds import Rounds, em, shard, silo, starting, world

from .conftest import final_state, residuals
from .guarded_world import CENTRAL
from .test_emdpo import CLUSTERED, RANDOM, RANKINGS, TypesRunner, types  # noqa: F401 - a fixture

SEEDED = "privacy/randomness=seeded"
FULL = "federation/sampler=full"
SHORT = ("federation.rounds=2", "federation.evaluate_every=2")
GUARANTEES = {
    "secure_sum": ("privacy=secure_sum", FULL),
    "distributed": ("privacy=distributed", FULL, SEEDED),
    "central": ("privacy=central", SEEDED),
    "central_adaptive": ("privacy=central_adaptive", "privacy.clip.adaptive.count_noise=0.5", SEEDED),
}
TERMS = Terms(1.0, 1.0, 0, 0)


def bounded(reply: Contribution, privacy: Protection = CENTRAL, phase_state: Rounds | None = None) -> Shielded:
    """Return what leaves a client, from its contribution to a phase's rounds."""
    rounds = phase_state or Rounds(em())
    template = rounds.phase.template(rounds.state)
    assert template is not None
    return shield(reply, template, privacy, TERMS)


# What leaves a client.


@given(top=st.integers(1, 3), people=st.integers(1, 4), judgments=st.integers(2, 10))
@settings(max_examples=15)
def test_a_bounded_contribution_has_one_length_whatever_types_a_client_trains(
    top: int, people: int, judgments: int
) -> None:
    rounds = Rounds(em("method.types=3", f"method.top={top}"))
    told = bounded(rounds.reply(1, silo(people, judgments)), phase_state=rounds)
    # Three weights and two sums for each of three types.
    assert told.vector.shape == (15,)
    assert float(np.linalg.norm(told.vector)) <= 1.0
    assert told.extras == {WEIGHT: 1.0}
    assert told.metrics == {}


def test_metrics_leave_only_where_they_are_open() -> None:
    reply = Rounds(em()).reply(1, shard())
    assert any(name.startswith("metric|train/loss") for name in reply.scalars)
    for release, expected in ((WithheldMetrics(), False), (OpenMetrics(), True)):
        told = bounded(reply, dataclasses.replace(CENTRAL, metrics=release))
        assert bool(told.metrics) == expected


def test_clipping_shrinks_a_type_s_change_and_its_mass_alike() -> None:
    """So that a client's own mean change is what it was, and only its voice is bounded."""
    rounds = Rounds(em("method.local.lr=5.0", "method.least_share=0"))
    template = rounds.phase.template(rounds.state)
    assert template is not None
    reply = rounds.reply(1, shard())
    told = template.unflatten(bounded(reply).vector)
    assert reply.norm() > 2.0
    for number in (0, 1):
        name = f"delta/{TYPES}{number}.score.weight"
        torch.testing.assert_close(
            told[name] / told[MASS][number], (reply.tensors[name] / reply.tensors[MASS][number]).double()
        )
    torch.testing.assert_close(told[SHARES] / told[SHARES].sum(), reply.tensors[SHARES].double(), rtol=1e-5, atol=1e-6)


def test_one_annotator_s_data_move_a_sum_by_no_more_than_twice_the_bound() -> None:
    rounds, clients = Rounds(em("method.local.lr=5.0")), world(4)
    plain = [bounded(rounds.reply(1, client)).vector for client in clients]
    turned = dataclasses.replace(clients[0], tiers=2 - clients[0].tiers, features=100 * clients[0].features)
    other = [bounded(rounds.reply(1, turned)).vector, *plain[1:]]
    assert float(np.linalg.norm(sum(plain) - sum(other))) <= 2.0
    assert float(np.linalg.norm(plain[0] - other[0])) > 0.1


def test_the_start_s_moments_are_far_beyond_a_step_and_clipping_leaves_their_ratio() -> None:
    start_phase, _ = starting("method.start.restarts=4")
    rounds = Rounds(start_phase)
    clients = world(6, menus=8)
    for number in (1, 2):
        replies = [rounds.reply(number, client) for client in clients]
        assert min(reply.norm() for reply in replies) > 1.5
        template = start_phase.template(rounds.state)
        told = [template.unflatten(bounded(reply, phase_state=rounds).vector) for reply in replies]
        for reply, own in zip(replies, told, strict=True):
            counts, values = ("start/moment", "start/moment") if number == 1 else ("start/count", "start/sum")
            ratio = float(own[counts].sum() / reply.tensors[counts].sum())
            torch.testing.assert_close(own[values], reply.tensors[values] * ratio)
        rounds.state = start_phase.update(rounds.state, total(replies), rounds.optimizer)


def test_noise_on_the_start_s_sums_leaves_centres_that_are_numbers() -> None:
    start_phase, _ = starting()
    rounds = Rounds(start_phase)
    generator = torch.Generator().manual_seed(0)
    for _ in range(start_phase.rounds):
        template = start_phase.template(rounds.state)
        noisy = {name: 3 * torch.randn(shape, generator=generator) for name, shape in template.tensors.items()}
        rounds.state = start_phase.update(rounds.state, Contribution(noisy), rounds.optimizer)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in rounds.state.values())


# Whole runs.


def test_a_secure_sum_ends_where_an_open_one_does(types: TypesRunner) -> None:  # noqa: F811
    plain, hidden = types("plain", *RANDOM, FULL, *SHORT), types("hidden", *RANDOM, *GUARANTEES["secure_sum"], *SHORT)
    largest, _ = residuals(final_state(plain, "em"), final_state(hidden, "em"))
    assert largest < 1e-6
    assert hidden.summary.privacy is not None
    assert hidden.summary.privacy["epsilon"] is None


@pytest.mark.slow
def test_a_secure_sum_ends_where_an_open_one_does_after_a_clustered_start(types: TypesRunner) -> None:  # noqa: F811
    plain, hidden = types("plain", FULL), types("hidden", *GUARANTEES["secure_sum"])
    for phase in ("start", "em"):
        assert residuals(final_state(plain, phase), final_state(hidden, phase))[0] < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["random", "probe"])
@pytest.mark.parametrize("name", ["distributed", "central", "central_adaptive"])
def test_every_guarantee_runs_within_its_budget(types: TypesRunner, name: str, kind: str) -> None:  # noqa: F811
    change = RANDOM if kind == "random" else ()
    found = types("run", *change, *GUARANTEES[name], *SHORT)
    assert found.summary.status == "completed"
    told = found.summary.privacy
    assert told is not None
    assert 0 < told["epsilon"] <= 8.0
    state = final_state(found, "em")
    assert float(state[PRIOR].sum()) == pytest.approx(1.0, abs=1e-5)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state.values() if tensor.is_floating_point())


@pytest.mark.slow
def test_accuracy_can_be_told_under_the_guarantee_and_what_is_not_between_0_and_1_cannot(
    types: TypesRunner,  # noqa: F811
) -> None:
    summed = ("privacy/metrics=summed", "privacy.metrics.noise_multiplier=2", "privacy.epsilon=200")
    with pytest.raises(UserError, match="train/log_likelihood"):
        types("refused", *RANDOM, *GUARANTEES["central"], *summed, "privacy.metrics.names=[train/log_likelihood]")
    found = types("run", *RANDOM, *GUARANTEES["central"], *summed, *SHORT)
    assert set(found.summary.metrics) <= {
        "test/accuracy",
        "train/effective_types",
        "train/largest_prior",
        "train/collapse_alarms",
        "train/collapse_restarts",
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["secure_sum", "distributed", "central"])
def test_the_fair_mixture_of_types_is_covered_too(types: TypesRunner, name: str) -> None:  # noqa: F811
    found = types("run", *RANDOM, *GUARANTEES[name], "method/fair=regret", *SHORT)
    assert found.summary.status == "completed"
    weights = final_state(found, "mmra")["mixture"]
    assert float(weights.sum()) == pytest.approx(1.0, abs=1e-5)
    assert float(weights.min()) >= 0


# What is refused.


@pytest.mark.parametrize("unit", ["user", "example"])
@pytest.mark.parametrize("begun", [RANDOM, CLUSTERED])
def test_noise_of_the_clients_own_is_refused(tmp_path: Path, unit: str, begun: tuple[str, ...]) -> None:
    with pytest.raises(
        UserError, match=rf"privacy\.local\.unit={unit}: .* choose another method, or privacy=central"
    ) as refusal:
        start([*RANKINGS, *begun, f"privacy=local_{unit}", f"output={tmp_path / 'run'}"])
    assert "\n" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_weights_by_judgments_are_refused_under_noise(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"method\.weight=judgments"):
        start([*RANKINGS, *RANDOM, "privacy=central", "method.weight=judgments", f"output={tmp_path / 'run'}"])


def test_what_the_server_tells_of_a_state_is_a_function_of_it_alone() -> None:
    phase = em()
    state = phase.initial(Streams(0), {})
    assert phase.report(state) == phase.report({**state})
    assert set(phase.report(state)) == {
        "train/effective_types",
        "train/largest_prior",
        "train/collapse_alarms",
        "train/collapse_restarts",
    }


def test_the_small_configuration_is_private_when_asked() -> None:
    found = parse(resolve([*RANKINGS, *RANDOM, "privacy=central"]))
    assert isinstance(found.privacy, Protection)
    assert found.privacy.private
