"""One run, top to bottom: configuration, data, method, federation, engine, run directory."""

from __future__ import annotations

import contextlib
import datetime
import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedalign.config import RunConfig, parse, resolve, to_json
from fedalign.errors import RunFailed, UserError
from fedalign.federation.checkpoint import NEWEST, Checkpoint
from fedalign.federation.job import Job, Outcome
from fedalign.federation.observer import Observer
from fedalign.federation.payload import reply_bytes
from fedalign.federation.population import Everybody
from fedalign.federation.server_app import make_server_app
from fedalign.guarantee import check_aggregation, custody_of, refuse_open_metrics
from fedalign.methods.base import Phase
from fedalign.report.environment import environment
from fedalign.report.heartbeat import StatusFile
from fedalign.report.metrics_log import MetricsLog
from fedalign.report.progress import Progress
from fedalign.report.round_log import RoundLog
from fedalign.report.run_directory import RunDirectory
from fedalign.run_data import RunData, checked_data
from fedalign.run_end import Result, save_trained, write_end
from fedalign.site import open_site, phases_of

_log = logging.getLogger(__name__)

JOURNAL = "privacy.json"
"""What a run has spent, beside its checkpoints: newer than they are."""

_RESUME = "resume="

Resolved = Mapping[str, Any]

Carry = Callable[[ServerApp], None]
"""Starts a server app on some grid and returns when it is done."""


def start(overrides: Sequence[str]) -> Result:
    """Run what the overrides say, in a new run directory.

    Raises
    ------
    UserError
        If the configuration or the data are wrong; nothing is left behind then.
    RunFailed
        If the federation breaks down; the directory says why.
    """
    resolved = resolve(overrides)
    config = parse(resolved)
    data = checked_data(resolved, config, open_site)
    directory = _prepare(resolved, config)
    return _conduct_here(directory, resolved, config, data)


def resume(path: Path) -> Result:
    """Go on with a run from its newest checkpoint, under its own configuration.

    Raises
    ------
    UserError
        If ``path`` is no run, or has no checkpoint that fits its method.
    """
    directory = RunDirectory.open(path)
    resolved = directory.read_config()
    config = parse(resolved)
    data = checked_data(resolved, config, open_site)
    _wind_back(directory, config, phases_of(config, data.questionnaire, data.questions))
    return _conduct_here(directory, resolved, config, data, resume=True)


def start_on_grid(grid: Grid, context: Context, overrides: Sequence[str]) -> None:
    """Run on a grid that Flower gives: its simulation runtime or a SuperLink with SuperNodes.

    The nodes read the data; this process never does. ``resume=DIR`` as the only override goes on with a run.

    Raises
    ------
    UserError
        If the configuration is wrong.
    RunFailed
        If the federation breaks down; the directory says why.
    """
    resumed = resumed_directory(overrides)
    directory = None if resumed is None else RunDirectory.open(resumed)
    resolved = resolve(overrides) if directory is None else directory.read_config()
    config = parse(resolved)
    refuse_open_metrics(config)
    check_aggregation(config, phases_of(config, {}, {}))
    if not isinstance(config.population, Everybody):
        raise UserError("population: nodes of a Flower federation come and go by themselves; set population=none")
    if directory is None:
        directory = _prepare(resolved, config)
    else:
        _wind_back(directory, config, phases_of(config, {}))
    _log.info("the run is in %s", directory.path.absolute())
    nodes = int(context.run_config.get("nodes", 0))

    def carry(server: ServerApp) -> None:
        server(grid, context)

    _conduct(directory, resolved, config, nodes, carry, RunData(0, {}, {}), resume=resumed is not None)


def resumed_directory(overrides: Sequence[str]) -> Path | None:
    """Return the directory that ``resume=`` names; None where a new run is asked for.

    Raises
    ------
    UserError
        If there is anything beside it.
    """
    resumed = [override.removeprefix(_RESUME) for override in overrides if override.startswith(_RESUME)]
    if (len(resumed) < len(overrides) and resumed) or len(resumed) > 1:
        raise UserError("resume=DIR goes on under the run's own configuration; give it alone")
    return Path(resumed[0]) if resumed else None


def _wind_back(directory: RunDirectory, config: RunConfig, phases: Sequence[Phase[Any]]) -> None:
    """Forget what was measured after the newest checkpoint.

    Raises
    ------
    UserError
        If there is no checkpoint that fits the run's method.
    """
    checkpoint = Checkpoint.load(directory.checkpoints, NEWEST, config.method.name)
    names = [phase.name for phase in phases]
    directory.truncate_metrics(names[checkpoint.phase], checkpoint.round, names)


def _prepare(resolved: Resolved, config: RunConfig) -> RunDirectory:
    """Make the run's directory and write down what is known before the run."""
    directory = RunDirectory.create(output_of(config))
    directory.write_config(resolved)
    directory.write_environment(environment(config.seed))
    return directory


def _conduct_here(
    directory: RunDirectory, resolved: Resolved, config: RunConfig, data: RunData, resume: bool = False
) -> Result:
    """Run on the configured engine."""
    state_path, clients = (directory.checkpoints / "clients").resolve(), data.clients

    def carry(server: ServerApp) -> None:
        config.engine.run(server, open_site, clients, state_path)

    nodes = config.engine.nodes(clients)
    return _conduct(directory, resolved, config, nodes, carry, data, resume)


def _conduct(
    directory: RunDirectory,
    resolved: Resolved,
    config: RunConfig,
    nodes: int,
    carry: Carry,
    data: RunData,
    resume: bool = False,
) -> Result:
    """Run the federation and write down what comes of it, good or bad."""
    outcomes: list[Outcome] = []
    jobs: list[Job] = []
    began = time.perf_counter()
    status = StatusFile(directory.status_file, config.method.headline)
    try:
        with _watched(directory, resolved, config, status) as observers, _threads(config.engine.threads):
            jobs.append(_job(directory, resolved, config, nodes, observers, data, resume))
            carry(make_server_app(lambda _: jobs[0], outcomes.append))
            if not outcomes:
                raise RunFailed("the engine ended before the run did")
            save_trained(directory.model, jobs[0], outcomes[0])
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}".strip().rstrip(":")
        try:
            # What has been spent is spent.
            left = Outcome(privacy=jobs[0].custody.statement() if jobs else None)
            write_end(directory, config, data, left, time.perf_counter() - began, reason, status)
        except Exception:
            # What went wrong with the run matters more than that it could not be written down.
            _log.exception("%s: the end of the failed run could not be written", directory.path)
        raise
    return write_end(directory, config, data, outcomes[0], time.perf_counter() - began, None, status)


def _job(
    directory: RunDirectory,
    resolved: Resolved,
    config: RunConfig,
    nodes: int,
    observers: Sequence[Observer],
    data: RunData,
    resume: bool,
) -> Job:
    phases = phases_of(config, data.questionnaire, data.questions)
    return Job(
        method=config.method.name,
        selection=config.method.selection,
        phases=phases,
        federation=config.federation,
        seed=config.seed,
        config=to_json(resolved),
        nodes=nodes,
        checkpoints=directory.checkpoints,
        observers=observers,
        resume=resume,
        custody=custody_of(config, phases, directory.checkpoints / JOURNAL, checked=data.clients > 0),
        population=config.population,
        reply_bytes=functools.partial(reply_bytes, compression=config.compression, privacy=config.privacy),
    )


@contextlib.contextmanager
def _watched(
    directory: RunDirectory, resolved: Resolved, config: RunConfig, status: StatusFile
) -> Iterator[list[Observer]]:
    """Open everything that listens to the run, and close it whatever happens."""
    # The status comes after the metrics: who reads of a round in it finds its numbers there.
    observers: list[Observer] = [
        MetricsLog(directory.metrics_file),
        status,
        config.logger.open(directory.path, config.name, resolved),
        Progress(config.method.headline),
        RoundLog(config.method.headline),
    ]
    status.begin()
    try:
        yield observers
    finally:
        for observer in observers:
            observer.run_ended()


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    """Give PyTorch the run's number of threads, and afterwards what it had."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def output_of(config: RunConfig) -> Path:
    """Return the directory that a run is to leave: the configured one, or a new one under ``outputs/``."""
    if config.output is not None:
        return Path(config.output)
    stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S_%f")
    return Path("outputs") / config.name / stamp
