"""Law 3: a run that was killed and resumed ends where the undisturbed run ends."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fedalign.errors import UserError
from fedalign.federation.observer import PhasePlan, RoundReport
from fedalign.report.metrics_log import MetricsLog, read_metrics
from fedalign.run import resume
from tests.cases import mostly_slow

from .conftest import Runner, final_state, residuals


class Killed(BaseException):
    """Stands for a process that is killed: nothing catches it on the way out."""


def kill_after(number: int, monkeypatch: pytest.MonkeyPatch, phase: str = "gpo") -> None:
    written = MetricsLog.round_ended

    def round_ended(log: MetricsLog, report: RoundReport) -> None:
        written(log, report)
        if report.phase == phase and report.round == number:
            raise Killed

    monkeypatch.setattr(MetricsLog, "round_ended", round_ended)


def timeless(path: Path) -> list[Any]:
    """Return a run's metrics without those that measure time, unless it is simulated."""
    metrics = read_metrics(path / "metrics.jsonl")
    return [m for m in metrics if not m.name.endswith("seconds") or m.name.startswith("simulated")]


# At a checkpoint, between two, and at the end; a server without and with a memory of its own.
@pytest.mark.parametrize("killed_after", mostly_slow([2, 3, 5], [3]))
@pytest.mark.parametrize("server", mostly_slow(["fedavg", "fedadam"], ["fedadam"]))
def test_resumed_equals_straight_through(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_after: int, server: str
) -> None:
    straight = run("straight", f"federation/server_optimizer={server}")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(killed_after, patch)
        run("killed", f"federation/server_optimizer={server}")
    assert json.loads((tmp_path / "killed" / "summary.json").read_text())["status"] == "failed"
    resumed = resume(tmp_path / "killed")
    assert residuals(final_state(straight), final_state(resumed)) == (0.0, 0.0)
    assert resumed.summary.metrics == straight.summary.metrics
    assert resumed.summary.groups == straight.summary.groups
    assert resumed.summary.timing.client_updates == straight.summary.timing.client_updates
    assert resumed.summary.traffic == straight.summary.traffic
    assert timeless(tmp_path / "killed") == timeless(tmp_path / "straight")
    assert resumed.summary.status == "completed"


@pytest.mark.slow
def test_a_simulated_population_and_what_was_kept_back_resume(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = ("population=silos", "population.dropout=0.3", "compression=topk_int8")
    straight = run("straight", *change)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(3, patch)
        run("killed", *change)
    resumed = resume(tmp_path / "killed")
    assert residuals(final_state(straight), final_state(resumed)) == (0.0, 0.0)
    assert resumed.summary.timing.simulated_s == straight.summary.timing.simulated_s
    assert resumed.summary.traffic == straight.summary.traffic
    assert timeless(tmp_path / "killed") == timeless(tmp_path / "straight")


VARIATIONAL = ("method.divergence.weights=gumbel", "method.divergence.beta=0.1", "method.collect_latents=true")
"""Mixture weights are learnt on the client: they are in its memory and nowhere else."""


@pytest.mark.slow
@pytest.mark.parametrize(("phase", "killed_after"), [("selector", 3), ("latents", 1)])
@pytest.mark.parametrize("arm", ["fedvpa", "fedvpa_sums"])
def test_a_variational_run_resumes_with_its_clients_mixture_weights(
    run_pairs: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arm: str, phase: str, killed_after: int
) -> None:
    change = (f"method={arm}", *VARIATIONAL)
    straight = run_pairs("straight", *change)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(killed_after, patch, phase)
        run_pairs("killed", *change)
    resumed = resume(tmp_path / "killed")
    for name in ("selector", "latents"):
        assert residuals(final_state(straight, name), final_state(resumed, name)) == (0.0, 0.0)
    assert resumed.summary.metrics == straight.summary.metrics
    assert resumed.summary.traffic == straight.summary.traffic


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["fedvpa", "fedvpa_sums"])
def test_lost_mixture_weights_change_what_is_learnt(
    run_pairs: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arm: str
) -> None:
    change = (f"method={arm}", *VARIATIONAL)
    straight = run_pairs("straight", *change)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(3, patch, "selector")
        run_pairs("killed", *change)
    saved = list((tmp_path / "killed" / "checkpoints" / "clients").rglob("*.safetensors"))
    assert saved
    for path in saved:
        path.unlink()
    resumed = resume(tmp_path / "killed")
    assert residuals(final_state(straight, "selector"), final_state(resumed, "selector"))[0] > 1e-9


def test_client_memory_is_part_of_what_resumes(run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = run("straight")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(3, patch)
        run("killed")
    for saved in (tmp_path / "killed" / "checkpoints" / "clients").rglob("*.safetensors"):
        saved.unlink()
    assert residuals(final_state(straight), final_state(resume(tmp_path / "killed")))[0] > 1e-6


def test_a_run_without_a_checkpoint_cannot_go_on(run: Runner, tmp_path: Path) -> None:
    run("uniform", "method=uniform")
    with pytest.raises(UserError, match="no checkpoint"):
        resume(tmp_path / "uniform")


def test_a_resumed_run_tells_its_observers_where_it_stands(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_after(3, patch)
        run("killed")
    told: list[tuple[str, int] | None] = []
    started = MetricsLog.run_started

    def run_started(log: MetricsLog, plan: Sequence[PhasePlan], resumed_after: tuple[str, int] | None) -> None:
        told.append(resumed_after)
        started(log, plan, resumed_after)

    monkeypatch.setattr(MetricsLog, "run_started", run_started)
    resume(tmp_path / "killed")
    assert told == [("gpo", 2)]
