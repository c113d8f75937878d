"""One run, top to bottom: configuration, data, method, federation, engine, run directory."""

from __future__ import annotations

import contextlib
import datetime
import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedalign.config import RunConfig, parse, resolve, to_json
from fedalign.data.schema import Question
from fedalign.errors import RunFailed, UserError
from fedalign.federation.checkpoint import NEWEST, Checkpoint
from fedalign.federation.conductor import CLOCK, Job, Outcome
from fedalign.federation.directory import ClientDirectory
from fedalign.federation.observer import Observer
from fedalign.federation.payload import reply_bytes
from fedalign.federation.population import Everybody
from fedalign.federation.server_app import make_server_app
from fedalign.guarantee import check_aggregation, check_guarantee, check_users, custody_of, refuse_open_metrics
from fedalign.methods.base import Phase
from fedalign.model_files import save_model
from fedalign.report.environment import environment
from fedalign.report.heartbeat import StatusFile
from fedalign.report.metrics_log import MetricsLog
from fedalign.report.profile import Part, parts
from fedalign.report.progress import Progress
from fedalign.report.render import render_run
from fedalign.report.round_log import RoundLog
from fedalign.report.run_directory import RunDirectory
from fedalign.report.summary import Summary, Timing, Traffic, final_values
from fedalign.site import open_site, phases_of

_log = logging.getLogger(__name__)

JOURNAL = "privacy.json"
"""What a run has spent, beside its checkpoints: newer than they are."""

_RESUME = "resume="

Resolved = Mapping[str, Any]

Carry = Callable[[ServerApp], None]
"""Starts a server app on some grid and returns when it is done."""


@dataclass(frozen=True)
class Result:
    """A finished run.

    Parameters
    ----------
    directory : Path
    summary : Summary
    profile : sequence of Part
        Where the time went.
    """

    directory: Path
    summary: Summary
    profile: Sequence[Part] = ()


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
    population = _checked_population(resolved, config)
    directory = _prepare(resolved, config)
    return _conduct_here(directory, resolved, config, population)


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
    population = _checked_population(resolved, config)
    _wind_back(directory, config, phases_of(config, population.questionnaire, population.questions))
    return _conduct_here(directory, resolved, config, population, resume=True)


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

    _conduct(directory, resolved, config, nodes, carry, _Population(0, {}, {}), resume=resumed is not None)


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


@dataclass(frozen=True)
class _Population:
    """How many clients there are, what was left out on the way, what a survey asks; and the seconds to find out."""

    clients: int
    dropped: Mapping[str, int]
    questionnaire: Mapping[str, int]
    questions: Mapping[str, Question] = field(default_factory=dict)
    seconds: float = 0.0


def _checked_population(resolved: Resolved, config: RunConfig) -> _Population:
    """Look at the data; what is bad in them is found here, before anything is written or started."""
    began = time.perf_counter()
    site = open_site(to_json(resolved), {})
    directory = ClientDirectory.of(site.data.clients)
    directory.check(site.phases, config.federation.sampler)
    directory.check_least(site.phases, config.federation.min_clients)
    directory.check_cohorts(site.phases, config.federation.sampler, config.federation.aggregation)
    check_aggregation(config, site.phases)
    config.population.fleet(directory.training, config.seed)
    check_guarantee(config, site.phases, directory)
    check_users(config, site.phases, ((client, site.data.shard(client)) for client in directory.training))
    site.check(client.name for client in site.data.clients)
    data = site.data
    seconds = time.perf_counter() - began
    return _Population(len(data.clients), data.dropped, data.questionnaire, data.questions, seconds)


def _prepare(resolved: Resolved, config: RunConfig) -> RunDirectory:
    """Make the run's directory and write down what is known before the run."""
    directory = RunDirectory.create(output_of(config))
    directory.write_config(resolved)
    directory.write_environment(environment(config.seed))
    return directory


def _conduct_here(
    directory: RunDirectory, resolved: Resolved, config: RunConfig, population: _Population, resume: bool = False
) -> Result:
    """Run on the configured engine."""
    state_path, clients = (directory.checkpoints / "clients").resolve(), population.clients

    def carry(server: ServerApp) -> None:
        config.engine.run(server, open_site, clients, state_path)

    nodes = config.engine.nodes(clients)
    return _conduct(directory, resolved, config, nodes, carry, population, resume)


def _conduct(
    directory: RunDirectory,
    resolved: Resolved,
    config: RunConfig,
    nodes: int,
    carry: Carry,
    population: _Population,
    resume: bool = False,
) -> Result:
    """Run the federation and write down what comes of it, good or bad."""
    outcomes: list[Outcome] = []
    jobs: list[Job] = []
    began = time.perf_counter()
    status = StatusFile(directory.status_file, config.method.headline)
    try:
        with _watched(directory, resolved, config, status) as observers, _threads(config.engine.threads):
            jobs.append(_job(directory, resolved, config, nodes, observers, population, resume))
            carry(make_server_app(lambda _: jobs[0], outcomes.append))
            if not outcomes:
                raise RunFailed("the engine ended before the run did")
            _save(directory.model, jobs[0], outcomes[0])
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}".strip().rstrip(":")
        try:
            # What has been spent is spent.
            left = Outcome(privacy=jobs[0].custody.statement() if jobs else None)
            _write_end(directory, config, population, left, time.perf_counter() - began, reason, status)
        except Exception:
            # What went wrong with the run matters more than that it could not be written down.
            _log.exception("%s: the end of the failed run could not be written", directory.path)
        raise
    return _write_end(directory, config, population, outcomes[0], time.perf_counter() - began, None, status)


def _save(place: Path, job: Job, outcome: Outcome) -> None:
    """Write what was trained: our own files, and what the phases have for other libraries."""
    save_model(place, job.method, outcome.artefacts)
    for phase in job.phases:
        if phase.name in outcome.artefacts:
            phase.export(outcome.artefacts[phase.name], place)


def _write_end(
    directory: RunDirectory,
    config: RunConfig,
    population: _Population,
    outcome: Outcome,
    seconds: float,
    reason: str | None,
    status: StatusFile,
) -> Result:
    """Write the summary and the report of a run that is over, and then say that it is."""
    began = time.perf_counter()
    summary = replace(_summarise(directory, config, outcome, seconds, reason), dropped=dict(population.dropped))
    directory.write_summary(summary)
    try:
        render_run(directory.path, config.method.headline if config.method.headline in summary.metrics else None)
    finally:
        status.close(summary.status, reason)
    written = time.perf_counter() - began
    outcome.counters["save_s"] = outcome.counters.get("save_s", 0.0) + written
    total = population.seconds + summary.timing.total_s + written
    return Result(directory.path, summary, parts(outcome.counters, total, population.seconds))


def _job(
    directory: RunDirectory,
    resolved: Resolved,
    config: RunConfig,
    nodes: int,
    observers: Sequence[Observer],
    population: _Population,
    resume: bool,
) -> Job:
    phases = phases_of(config, population.questionnaire, population.questions)
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
        custody=custody_of(config, phases, directory.checkpoints / JOURNAL, checked=population.clients > 0),
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


def _summarise(
    directory: RunDirectory, config: RunConfig, outcome: Outcome, seconds: float, reason: str | None
) -> Summary:
    metrics, groups = final_values(directory.read_metrics())
    count = outcome.counters.get
    updates, rounds = int(count("client_updates", 0)), int(count("rounds", 0))
    compute, training = count("update_s", 0.0), count("train_s", 0.0)
    total = seconds + count("earlier_s", 0.0)
    timing = Timing(
        total_s=total,
        per_round_s=total / max(1, rounds),
        client_updates=updates,
        per_client_update_ms=1e3 * compute / max(1, updates),
        engine_overhead_ms=1e3 * max(0.0, training - compute) / max(1, updates),
        simulated_s=outcome.counters.get(CLOCK),
    )
    traffic = Traffic(int(count("down_bytes", 0)), int(count("up_bytes", 0)))
    return Summary(
        method=config.method.name,
        data=config.data.name,
        status="completed" if reason is None else "failed",
        rounds=rounds,
        metrics=metrics,
        groups=groups,
        privacy=outcome.privacy,
        timing=timing,
        traffic=traffic,
        seed=config.seed,
        reason=reason,
    )


def output_of(config: RunConfig) -> Path:
    """Return the directory that a run is to leave: the configured one, or a new one under ``outputs/``."""
    if config.output is not None:
        return Path(config.output)
    stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S_%f")
    return Path("outputs") / config.name / stamp
