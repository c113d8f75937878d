"""What a run leaves when it is over, well or badly: the trained model, the summary, the report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedalign.config import RunConfig
from fedalign.federation.job import CLOCK, Job, Outcome
from fedalign.model_files import save_model
from fedalign.report.heartbeat import StatusFile
from fedalign.report.profile import Part, parts
from fedalign.report.render import render_run
from fedalign.report.run_directory import RunDirectory
from fedalign.report.summary import Summary, Timing, Traffic, final_values
from fedalign.run_data import RunData


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


def save_trained(place: Path, job: Job, outcome: Outcome) -> None:
    """Write what was trained: our own files, and what the phases have for other libraries."""
    save_model(place, job.method, outcome.artefacts)
    for phase in job.phases:
        if phase.name in outcome.artefacts:
            phase.export(outcome.artefacts[phase.name], place)


def write_end(
    directory: RunDirectory,
    config: RunConfig,
    data: RunData,
    outcome: Outcome,
    seconds: float,
    reason: str | None,
    status: StatusFile,
) -> Result:
    """Write the summary and the report of a run that is over, and then say that it is."""
    began = time.perf_counter()
    summary = replace(_summary(directory, config, outcome, seconds, reason), dropped=dict(data.dropped))
    directory.write_summary(summary)
    try:
        render_run(directory.path, config.method.headline if config.method.headline in summary.metrics else None)
    finally:
        status.close(summary.status, reason)
    written = time.perf_counter() - began
    outcome.counters["save_s"] = outcome.counters.get("save_s", 0.0) + written
    total = data.seconds + summary.timing.total_s + written
    return Result(directory.path, summary, parts(outcome.counters, total, data.seconds))


def _summary(
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
