"""Runs on Ray's own workers: what dies changes nothing but the count of retries, and nothing is left behind."""

from __future__ import annotations

import functools
import os
import shutil
import sys
import tempfile
import types
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from fedalign.config import resolve, to_json
from fedalign.contribution import State
from fedalign.data.federated import ClientInfo
from fedalign.errors import RunFailed, UserError
from fedalign.federation.observer import RoundReport
from fedalign.federation.site import Site
from fedalign.report.metrics_log import MetricsLog, read_metrics
from fedalign.run import start
from fedalign.run_end import Result
from fedalign.site import open_site
from tests.laws.conftest import TINY, final_state, residuals, selector_overrides

from .deadly import ALWAYS, FULL, broken_site, deadly_site

pytestmark = pytest.mark.slow

RAY = ("engine=ray", "engine.cpus_per_worker=0.5")
SHORT = ("federation.rounds=3", "federation.evaluate_every=3")


@pytest.fixture(scope="module", autouse=True)
def ray_of_the_caller() -> Iterator[None]:
    """Start Ray once: an engine uses one that is there, and leaves it alone."""
    import ray

    directory = tempfile.mkdtemp(prefix="fa", dir="/tmp")
    ray.init(
        address="local", num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False,
        object_store_memory=200 * 2**20, _temp_dir=directory,
    )  # fmt: skip
    yield
    assert ray.is_initialized()
    ray.shutdown()
    shutil.rmtree(directory, ignore_errors=True)


def run(path: Path, *overrides: str) -> Result:
    return start([*TINY, *SHORT, *overrides, f"output={path}"])


def counted(result: Result, name: str) -> list[float]:
    return [m.value for m in read_metrics(result.directory / "metrics.jsonl") if m.name == name]


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Deaths:
    """What lets clients kill the workers that they meet, from the first evaluation of a phase on."""

    def __init__(self, directory: Path, patch: pytest.MonkeyPatch) -> None:
        directory.mkdir()
        self.directory, self._patch = directory, patch
        site = functools.partial(deadly_site, str(directory), os.getpid())
        patch.setattr("fedalign.run.open_site", site)

    def plan(self, phase: str, *names: str) -> None:
        told = MetricsLog.round_ended

        def round_ended(log: MetricsLog, report: RoundReport) -> None:
            told(log, report)
            if (report.phase, report.round) == (phase, 1):
                for name in names:
                    (self.directory / name).touch()

        self._patch.setattr(MetricsLog, "round_ended", round_ended)


@pytest.fixture
def deaths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Deaths:
    return Deaths(tmp_path / "deaths", monkeypatch)


def test_workers_that_are_killed_in_mid_round_change_nothing_but_the_retries(tmp_path: Path, deaths: Deaths) -> None:
    undisturbed = run(tmp_path / "undisturbed", *RAY)
    here = run(tmp_path / "here", "engine=in_process")
    deaths.plan("gpo", "group-01-1", "group-04-1")
    disturbed = run(tmp_path / "disturbed", *RAY)
    assert list(deaths.directory.iterdir()) == []
    assert sum(counted(undisturbed, "retries")) == 0
    assert sum(counted(disturbed, "retries")) == 2
    assert same(final_state(disturbed), final_state(undisturbed))
    assert disturbed.summary.metrics == undisturbed.summary.metrics
    assert disturbed.summary.timing.client_updates == undisturbed.summary.timing.client_updates
    assert residuals(final_state(here), final_state(disturbed))[0] <= 1e-6


def test_a_client_that_kills_every_worker_is_dropped_and_the_run_goes_on(tmp_path: Path, deaths: Deaths) -> None:
    deaths.plan("gpo", f"group-02-{ALWAYS}")
    result = run(tmp_path / "run", *RAY, "engine.retries=1", "federation.rounds=2", "federation.evaluate_every=9")
    assert result.summary.status == "completed"
    assert counted(result, "clients_failed")[-2:] == [0.0, 1.0]
    # The worker was at two clients, who were both sent out again, one by one.
    assert counted(result, "retries")[-2:] == [0.0, 2.0]


def test_a_new_worker_that_cannot_open_at_once_is_started_again(tmp_path: Path, deaths: Deaths) -> None:
    undisturbed = run(tmp_path / "undisturbed", *RAY, "engine.workers=1")
    deaths.plan("gpo", f"group-01-{FULL}")
    disturbed = run(tmp_path / "disturbed", *RAY, "engine.workers=1")
    assert list(deaths.directory.iterdir()) == []
    assert same(final_state(disturbed), final_state(undisturbed))


def test_mixture_weights_that_stay_on_the_client_outlive_its_worker(tmp_path: Path, deaths: Deaths) -> None:
    change = ("method.divergence.weights=gumbel", "method.divergence.beta=0.1", "method.collect_latents=true")
    short = (*selector_overrides(*change), "federation.rounds=4", "engine.threads=1")
    here = start([*short, f"output={tmp_path / 'here'}"])
    names = {client.name for client in open_clients(short)}
    deaths.plan("selector", f"{min(names)}-1")
    there = start([*short, *RAY, f"output={tmp_path / 'there'}"])
    assert list(deaths.directory.iterdir()) == []
    for phase in ("selector", "latents"):
        assert residuals(final_state(here, phase), final_state(there, phase))[0] <= 1e-6
    assert sum(counted(there, "retries")) >= 1


@pytest.mark.parametrize("guarantee", ["central", "secure_sum", "distributed"])
def test_a_guarantee_is_kept_as_in_process_though_workers_die(tmp_path: Path, deaths: Deaths, guarantee: str) -> None:
    seeded = () if guarantee == "secure_sum" else ("privacy/randomness=seeded",)
    change = (f"privacy={guarantee}", *seeded)
    here = run(tmp_path / "here", *change)
    deaths.plan("gpo", "group-03-1")
    there = run(tmp_path / "there", *change, *RAY)
    assert list(deaths.directory.iterdir()) == []
    assert residuals(final_state(here), final_state(there))[0] <= 1e-6
    assert here.summary.privacy is not None
    assert there.summary.privacy is not None
    assert there.summary.privacy["epsilon"] == here.summary.privacy["epsilon"]
    assert sum(counted(there, "clients_failed")) == 0


def test_data_that_a_worker_lacks_end_the_run_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedalign.run.open_site", functools.partial(broken_site, os.getpid()))
    with pytest.raises(
        RunFailed, match=r"a worker on \S+ cannot open the run's data: FileNotFoundError: answers.jsonl"
    ):
        run(tmp_path / "run", *RAY)


def test_what_a_worker_cannot_import_ends_the_run_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = types.ModuleType("only_in_this_process")
    monkeypatch.setitem(sys.modules, here.__name__, here)

    def opens(config: str, node_config: object) -> Site:
        return open_site(config, {})

    opens.__module__, opens.__qualname__ = here.__name__, "opens"
    here.opens = opens  # type: ignore[attr-defined]
    monkeypatch.setattr("fedalign.run.open_site", opens)
    with pytest.raises(RunFailed, match=r"a worker cannot be started: .*No module named 'only_in_this_process'"):
        run(tmp_path / "run", *RAY)


def test_more_workers_than_there_is_room_for_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"engine.workers=9 with 0.5 CPUs and 0 GPUs each: Ray has 2 CPUs and 0 GPUs"):
        run(tmp_path / "cpus", *RAY, "engine.workers=9")
    with pytest.raises(UserError, match=r"engine.workers=1 with 0.5 CPUs and 0.25 GPUs each: .* room for 0"):
        run(tmp_path / "gpus", *RAY, "engine.workers=1", "engine.gpus_per_worker=0.25")


def test_room_that_others_hold_is_waited_for_no_longer_than_said(tmp_path: Path) -> None:
    import ray

    holder = ray.remote(num_cpus=2)(Holder).remote()
    ray.get(holder.hold.remote())
    with pytest.raises(RunFailed, match=r"no worker could be started within engine.start_timeout=2 s; Ray has 0 CPUs"):
        run(tmp_path / "run", *RAY, "engine.start_timeout=2")
    ray.kill(holder)


class Holder:
    """Takes up room."""

    def hold(self) -> bool:
        return True


def open_clients(overrides: Sequence[str]) -> list[ClientInfo]:
    return list(open_site(to_json(resolve(overrides)), {}).data.clients)
