"""Law 2: the same configuration and seed give the same state on every engine, and on any layout of nodes."""

from __future__ import annotations

import itertools
import os
import tempfile
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict
from flwr.serverapp import ServerApp

from fedalign.engines.in_process import InProcess, InProcessGrid
from fedalign.federation.batching import Batching
from fedalign.federation.client_app import make_client_app
from fedalign.federation.site import OpenSite
from fedalign.run import start
from tests.cases import mostly_slow

from .conftest import PAIRS, Runner, felt, final_state, residuals

TOLERANCE = 1e-6


def test_flower_simulation_agrees_with_in_process(run: Runner) -> None:
    largest, mean = residuals(final_state(run("in_process")), final_state(run("flower", "engine=flower")))
    assert largest <= TOLERANCE
    assert mean <= TOLERANCE


def test_workers_on_ray_agree_with_in_process_and_leave_nothing(run: Runner) -> None:
    short = ("federation.rounds=2", "federation.evaluate_every=2")
    there = run("ray", "engine=ray", "engine.cpus_per_worker=0.5", "engine.clients_per_call=2", *short)
    largest, mean = residuals(final_state(run("in_process", *short)), final_state(there))
    assert largest <= TOLERANCE
    assert mean <= TOLERANCE
    assert not list(Path(tempfile.gettempdir()).glob(f"fedalign-{os.getpid()}-*"))


@pytest.mark.slow
def test_flower_simulation_agrees_on_the_variational_method(run_pairs: Runner) -> None:
    """With mixture weights that stay on the client, and latents that are collected at the end."""
    change = ("method.divergence.weights=gumbel", "method.collect_latents=true", "federation.rounds=2")
    here, there = run_pairs("in_process", *change), run_pairs("flower", *change, "engine=flower")
    for phase in ("selector", "latents"):
        largest, mean = residuals(final_state(here, phase), final_state(there, phase))
        assert largest <= TOLERANCE
        assert mean <= TOLERANCE
    assert there.summary.metrics == pytest.approx(here.summary.metrics, abs=1e-5)


def test_one_node_a_client_agrees_with_one_node_for_all(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    together = final_state(run("together", "federation/sampler=fraction"))
    separate(monkeypatch)
    largest, mean = residuals(together, final_state(run("apart", "federation/sampler=fraction")))
    assert largest <= TOLERANCE
    assert mean <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["fedvpa", "fedvpa_sums"])
def test_one_node_a_client_agrees_on_variational_methods(
    run_pairs: Runner, monkeypatch: pytest.MonkeyPatch, arm: str
) -> None:
    together = final_state(run_pairs("together", f"method={arm}"), "selector")
    separate(monkeypatch)
    largest, _ = residuals(together, final_state(run_pairs("apart", f"method={arm}"), "selector"))
    assert largest <= TOLERANCE


STACKED = ("engine=vectorised", "engine.choose=stack")
# Plain steps: some numbers have no influence, and Adam makes steps of full size out of the rounding in their gradients.
PREDICTOR = ("method.local.optimizer=sgd", "method.local.lr=0.05", "federation/sampler=fraction")
GUARDS = {
    "prior": ("method.prior=federated",),
    # Seeded, since who is drawn is a secret too.
    "clipped": (
        *("method.prior=none", "privacy=central", "privacy.epsilon=null", "privacy.noise_multiplier=0"),
        "privacy/randomness=seeded",
    ),
    # A small bound, so that the noise leaves a network whose gradients are of an ordinary size.
    "noisy": (
        *("method.prior=none", "privacy=central", "privacy.clip.bound=0.05", "privacy.noise_multiplier=1"),
        *("privacy.epsilon=null", "privacy/randomness=seeded"),
    ),
    "masked": ("method.prior=none", "method.weight=points", "privacy=secure_sum", "federation/sampler=full"),
}


@pytest.mark.parametrize("guard", mostly_slow(GUARDS, ["prior", "noisy"]))
def test_stacks_agree_with_the_loop_on_group_preference_predictors(run: Runner, guard: str) -> None:
    changes = (*PREDICTOR, *GUARDS[guard])
    alone, together = run("alone", *changes), run("together", *changes, *STACKED)
    largest, mean = residuals(final_state(alone), final_state(together))
    assert largest <= TOLERANCE
    assert mean <= TOLERANCE
    assert together.summary.metrics == pytest.approx(alone.summary.metrics, abs=1e-5)


@pytest.mark.slow
def test_adam_on_stacks_predicts_what_it_does_in_the_loop(run: Runner) -> None:
    """As shipped; what differs are numbers that predictions do not depend on."""
    alone, together = run("alone"), run("together", *STACKED)
    assert together.summary.metrics == pytest.approx(alone.summary.metrics, abs=1e-6)
    largest, _ = residuals(felt(final_state(alone)), felt(final_state(together)))
    assert largest <= TOLERANCE


@pytest.mark.parametrize("arm", mostly_slow(["fedvpl", "fedvpa_sums"], ["fedvpl"]))
def test_stacks_agree_with_the_loop_on_variational_methods(run_pairs: Runner, arm: str) -> None:
    """With dropout and clipped gradients, as shipped."""
    changes = (f"method={arm}", "federation.rounds=3", "method.collect_latents=false")
    alone, together = run_pairs("alone", *changes), run_pairs("together", *changes, *STACKED)
    largest, mean = residuals(final_state(alone, "selector"), final_state(together, "selector"))
    assert largest <= TOLERANCE
    assert mean <= TOLERANCE


def test_stacks_agree_with_the_loop_on_reward_heads(tmp_path: Path) -> None:
    changes = ("method=fedavg_bt", *PAIRS, "federation.rounds=3")
    alone = start([*changes, f"output={tmp_path / 'alone'}"])
    together = start([*changes, *STACKED, f"output={tmp_path / 'together'}"])
    largest, mean = residuals(final_state(alone, "reward"), final_state(together, "reward"))
    assert largest <= TOLERANCE
    assert mean <= TOLERANCE


def test_a_run_may_change_between_stacks_and_the_loop(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moments that stacks leave on the clients are those that the loop goes on from, and the other way round."""
    persisting = ("method.prior=none", "method.local.optimizer_state=persist", "federation/sampler=fraction")
    straight = run("straight", *persisting)
    of, turns = Batching.of, itertools.cycle([False, True])
    monkeypatch.setattr(Batching, "of", lambda *order: of(*order) if next(turns) else None)
    mixed = run("mixed", *persisting, *STACKED)
    assert mixed.summary.metrics == pytest.approx(straight.summary.metrics, abs=1e-5)


def separate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the in-process engine host each client on a node of its own."""

    def many_nodes(engine: InProcess, server: ServerApp, open_site: OpenSite, clients: int, path: Path) -> None:
        # Node ids in falling order: neither ids nor the order of replies may matter.
        contexts = {
            1000 - place: Context(1, 1000 - place, {"partition-id": place}, RecordDict(), {})
            for place in range(clients)
        }
        server(InProcessGrid(make_client_app(open_site, path), contexts), Context(1, 0, {}, RecordDict(), {}))

    monkeypatch.setattr(InProcess, "run", many_nodes)
    monkeypatch.setattr(InProcess, "nodes", lambda engine, clients: clients)


def test_one_seed_is_one_run_and_another_is_not(run: Runner) -> None:
    first = run("first", "method.prior=none")
    again = run("again", "method.prior=none")
    other = run("other", "seed=1", "method.prior=none")
    assert residuals(final_state(first), final_state(again)) == (0.0, 0.0)
    assert first.summary.metrics == again.summary.metrics
    assert residuals(final_state(first), final_state(other))[0] > 1e-3
