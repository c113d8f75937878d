"""One run of a piece of work: on an engine, or in a bare loop, with its times and its last weights."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import torch

from fedalign.config import parse, resolve, to_json
from fedalign.contribution import State
from fedalign.engines.allocator import keep_freed_memory
from fedalign.engines.base import Engine
from fedalign.federation.job import Job, Outcome
from fedalign.federation.observer import Observer
from fedalign.federation.server_app import make_server_app
from fedalign.federation.site import OpenSite
from fedalign.report.metrics_log import MetricsLog
from fedalign.site import open_site, setting
from scripts.benchmark_clock import Stopwatch


@dataclass(frozen=True)
class Federation:
    """What an engine runs.

    Parameters
    ----------
    engine : Engine
    job : Job
    open_site : callable
        A function that workers find by its name.
    clients : int
    phase : str
        Whose last state is compared.
    """

    engine: Engine
    job: Job
    open_site: OpenSite
    clients: int
    phase: str


def configured(overrides: Sequence[str], place: Path, observers: Sequence[Observer], phase: str) -> Federation:
    """Return what ``fedalign run`` would run with these overrides, with checkpoints under ``place``."""
    resolved = resolve(list(overrides))
    config = parse(resolved)
    clients = len(open_site(to_json(resolved), {}).data.clients)
    job = Job(
        method=config.method.name,
        selection=config.method.selection,
        phases=config.method.phases(setting(config)),
        federation=config.federation,
        seed=config.seed,
        config=to_json(resolved),
        nodes=config.engine.nodes(clients),
        checkpoints=place / "checkpoints",
        observers=observers,
        resume=False,
    )
    return Federation(config.engine, job, open_site, clients, phase)


class Federated(Protocol):
    """A piece of work that any engine can be given.

    Attributes
    ----------
    rounds, threads : int
    """

    @property
    def rounds(self) -> int:
        """How many rounds there are; the first and last are not timed: workers start, engines save."""

    @property
    def threads(self) -> int:
        """PyTorch threads."""

    @property
    def updates(self) -> int:
        """Client-updates of a round."""

    def federation(self, engine: Sequence[str], place: Path, observers: Sequence[Observer]) -> Federation:
        """Return what the engine that the overrides choose runs."""


class Task(Federated, Protocol):
    """Work that a bare loop can do too."""

    @property
    def name(self) -> str:
        """Name in tables."""

    @property
    def parameters(self) -> int:
        """Number of parameters of the network."""

    def bare(self, tick: Callable[[], None]) -> State:
        """Run without a framework, call ``tick`` before the first round and after each, return the last weights."""


WorkT = TypeVar("WorkT", bound=Federated)


@dataclass(frozen=True)
class Measurement:
    """One run.

    Parameters
    ----------
    wall_ms, cpu_ms : float
        Per client-update; ``cpu_ms`` counts this process alone.
    start_s : float
        From the call to the end of the first round, without what a later round takes.
    weights : State
        After the last round.
    """

    wall_ms: float
    cpu_ms: float
    start_s: float
    weights: State


def measure(task: WorkT, run: Callable[[WorkT, Stopwatch], State]) -> Measurement:
    """Run the work once and time all its rounds but the first and the last.

    Parameters
    ----------
    task : Task
    run : callable
        Runs it, lets the stopwatch tick, and returns the last weights.
    """
    torch.set_num_threads(task.threads)
    # Engines do so; a bare loop in the same place is to gain by it as well.
    keep_freed_memory()
    # The first full collection walks every module that was imported; whoever comes first would pay for it.
    gc.collect()
    clock = Stopwatch()
    weights = run(task, clock)
    wall, cpu = (clock.per_update(times, task.updates) for times in (clock.wall, clock.cpu))
    return Measurement(wall, cpu, clock.start_s, weights)


def run_bare(task: Task, clock: Stopwatch) -> State:
    """Run the bare loop."""
    return task.bare(clock.tick)


def run_engine(task: Federated, clock: Stopwatch, engine: Sequence[str]) -> State:
    """Run the federation as ``fedalign run`` does, metrics.jsonl included."""
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        log = MetricsLog(place / "metrics.jsonl")
        federation = task.federation(engine, place, [log, clock])
        # What a federation is made of is not its engine's start-up.
        clock.began = Stopwatch().began
        try:
            server = make_server_app(lambda _: federation.job, outcomes.append)
            federation.engine.run(server, federation.open_site, federation.clients, place / "clients")
        finally:
            log.run_ended()
    return outcomes[0].artefacts[federation.phase]


def difference(weights: State, reference: State) -> float:
    """Return the largest absolute difference between two sets of weights.

    Raises
    ------
    ValueError
        If their names differ.
    """
    if weights.keys() != reference.keys():
        raise ValueError(f"weights {sorted(weights)} are not {sorted(reference)}")
    return max(float((weights[name] - reference[name]).abs().max()) for name in reference)
