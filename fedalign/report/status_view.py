"""How a run stands, on the terminal: one line, or all that there is to say."""

from __future__ import annotations

import datetime

from rich.console import Console, Group, RenderableType
from rich.text import Text

from fedalign.report.numbers import duration, number
from fedalign.report.run_status import RunStatus
from fedalign.report.terminal import values_table

_STYLES = {"running": "cyan", "completed": "green", "silent": "yellow"}


def line(status: RunStatus) -> str:
    """Return a run in one line: state, progress, headline, epsilon, time left, and what is wrong."""
    parts = [status.state, *progress(status)]
    beat = status.heartbeat
    if beat is not None and beat.headline in status.metrics:
        parts.append(f"{beat.headline} {number(status.metrics[beat.headline])}")
    if status.epsilon is not None:
        parts.append(f"ε {status.epsilon:.3g}")
    if status.state == "running" and beat is not None and beat.eta_s is not None:
        parts.append(f"{duration(beat.eta_s)} left")
    if status.reason is not None:
        parts.append(" ".join(status.reason.split()))
    return f"{status.directory}: {', '.join(parts)}"


def progress(status: RunStatus) -> list[str]:
    """Return where the run is in its plan and who took part in the last round."""
    beat = status.heartbeat
    if beat is None:
        return []
    if beat.phase is None:
        return ["waiting for nodes"] if status.state == "running" else []
    parts = [f"{beat.phase} round {beat.round} of {beat.rounds}"]
    if len(beat.phases) > 1:
        place = [phase.name for phase in beat.phases].index(beat.phase) + 1
        parts[0] = f"phase {place} of {len(beat.phases)}: {parts[0]}"
    if beat.clients_asked:
        failed = f" ({beat.clients_failed} failed)" if beat.clients_failed else ""
        parts.append(f"{beat.clients_asked} clients{failed}")
    return parts


def details(status: RunStatus) -> RenderableType:
    """Return everything about one run."""
    state = Text(status.state, style=_STYLES.get(status.state, "red"))
    lines = [Text(f"{status.directory}: ").append_text(state), *map(Text, _facts(status))]
    if not status.metrics:
        return Group(*lines)
    title = f"{status.method} on {status.data}, seed {status.seed}"
    return Group(*lines, values_table(title, status.metrics))


def show_details(console: Console, status: RunStatus) -> None:
    """Print everything about one run."""
    console.print(details(status), soft_wrap=True)


def _facts(status: RunStatus) -> list[str]:
    beat, facts = status.heartbeat, []
    if status.reason is not None:
        facts.append(f"reason: {' '.join(status.reason.split())}")
    if where := progress(status):
        facts.append(f"progress: {', '.join(where)}")
    if beat is not None:
        left = f", {duration(beat.eta_s)} left" if status.state == "running" and beat.eta_s is not None else ""
        facts.append(f"time: {duration(beat.elapsed_s)} since {_clock(beat.started)}{left}")
        heard = "" if status.ended else f", last heard of {duration(status.silence_s or 0.0)} ago"
        facts.append(f"process: {beat.writer.pid} on {beat.writer.host}{heard}")
    if status.epsilon is not None:
        budget = f" of {status.epsilon_budget:.3g}" if status.epsilon_budget is not None and not status.ended else ""
        delta = f" at delta {status.delta:.2g}" if status.delta is not None else ""
        facts.append(f"privacy: epsilon {status.epsilon:.3g}{budget}{delta}")
    for name, (phase, round_number) in status.checkpoints.items():
        facts.append(f"checkpoint {name}: {phase} round {round_number}")
    if status.resume is not None:
        facts.append(f"go on with: {status.resume}")
    elif status.state in ("dead", "failed", "unknown"):
        facts.append("no checkpoint to go on from; run it again with another output")
    if status.logs is not None:
        facts.append(f"logs: {status.logs}")
    return facts


def _clock(moment: str) -> str:
    """Return a moment as clocks show it here."""
    return datetime.datetime.fromisoformat(moment).astimezone().strftime("%Y-%m-%d %H:%M:%S")
