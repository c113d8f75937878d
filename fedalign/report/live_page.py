"""The page about a run that goes on: blocks that the server renders, and a few lines of script that renew them."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from fedalign.report import html, live_charts, svg
from fedalign.report.live_metrics import LiveMetrics
from fedalign.report.numbers import duration, number
from fedalign.report.run_page import groups_table, metrics_table
from fedalign.report.run_status import RunStatus

_STYLE = """
.tile { flex-basis: 110px; padding: 14px; } .tile b { font-size: 21px; white-space: nowrap; }
.bar { display: grid; grid-template-columns: minmax(90px, 160px) 1fr 90px; gap: 12px; align-items: center;
  margin: 6px 0; }
.bar span { overflow-wrap: anywhere; } .bar span:last-child { color: var(--muted); text-align: right;
  font-variant-numeric: tabular-nums; }
progress { appearance: none; width: 100%; height: 8px; border: 0; border-radius: 99px; background: var(--line); }
progress::-webkit-progress-bar { background: var(--line); border-radius: 99px; }
progress::-webkit-progress-value { background: var(--line-0); border-radius: 99px; }
progress::-moz-progress-bar { background: var(--line-0); border-radius: 99px; }
#lost { position: sticky; top: 0; padding: 8px 14px; border-radius: 8px; background: var(--bad); color: var(--page); }
code { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
"""

SCRIPT = """\
"use strict";
// Asks for the blocks again and again, and changes those that are not as they were.
const shown = new Map();
let missed = 0;

function put(blocks) {
  for (const [name, content] of Object.entries(blocks)) {
    if (shown.get(name) !== content) {
      shown.set(name, content);
      document.getElementById(name).innerHTML = content;
    }
  }
}

async function renew() {
  let pause = 1000;
  try {
    const answer = await fetch("/state.json", { cache: "no-store" });
    if (!answer.ok) throw new Error(answer.statusText);
    const state = await answer.json();
    missed = 0;
    document.title = state.title;
    put(state.blocks);
    if (state.report) return location.replace(state.report);
    if (state.more) pause = 0;
  } catch (error) {
    missed += 1;
    pause = 2000;
  }
  document.getElementById("lost").hidden = missed < 2;
  setTimeout(renew, pause);
}

renew();
"""

_MOST_GROUPS = 200
_MOST_FAILURES = 20


def live_page(title: str, blocks: Mapping[str, str]) -> str:
    """Return the whole page.

    Parameters
    ----------
    title : str
    blocks : mapping from id to HTML
        In the order of the page.
    """
    lost = '<p id="lost" hidden>The server of this page does not answer; what stands here is old.</p>\n'
    body = "".join(f'<div id="{name}">{content}</div>\n' for name, content in blocks.items())
    head = (
        f"<style>{svg.STYLE}{live_charts.STYLE}{_STYLE}</style>\n"
        '<link rel="icon" href="data:,">\n<script src="/live.js" defer></script>\n'
    )
    return html.page(title, lost + body, head)


def live_title(status: RunStatus) -> str:
    """Return how the page is called, with the round for those who look at the tab only."""
    beat = status.heartbeat
    where = f"{beat.phase} {beat.round}/{beat.rounds}, " if beat is not None and beat.phase is not None else ""
    return f"{status.state}: {where}{status.method} on {status.data}"


def live_blocks(status: RunStatus, metrics: LiveMetrics, name: str, headline: str) -> dict[str, str]:
    """Return the page's blocks by id.

    Parameters
    ----------
    status : RunStatus
    metrics : LiveMetrics
    name : str
        Name of the run's directory.
    headline : str
        Name of the metric that matters most.
    """
    return {
        "heading": html.heading(
            f"{status.method} on {status.data}",
            f"run {name}, seed {status.seed}",
            status.state,
            good=status.state in ("running", "completed"),
        ),
        "trouble": _trouble(status),
        "numbers": html.tiles(_numbers(status, headline)),
        "progress": html.section("Progress", _progress(status)),
        "charts": html.section("Curves", live_charts.live_charts(metrics, headline)),
        "metrics": html.section("Metrics", metrics_table(metrics.last)),
        "groups": html.section("Groups", _groups(metrics, headline)),
        "failures": html.section("Clients that failed", _failures(metrics)),
    }


def _trouble(status: RunStatus) -> str:
    if status.reason is None:
        return ""
    body = html.paragraph(status.reason, bad=True)
    if status.resume is not None:
        body += f"<p>It goes on with <code>{escape(status.resume)}</code></p>\n"
    return html.section("What is wrong", body)


def _numbers(status: RunStatus, headline: str) -> list[tuple[str, str]]:
    beat = status.heartbeat
    shown = [(number(status.metrics[name]), name) for name in (headline, f"{headline}_worst") if name in status.metrics]
    shown.append(_epsilon(status))
    if beat is None:
        return shown
    if beat.clients_asked:
        given = beat.clients_asked - beat.clients_failed
        shown.append((f"{given} of {beat.clients_asked}", "clients took part"))
    shown.append((duration(beat.elapsed_s + _since(status)), "elapsed"))
    if status.state == "running" and beat.eta_s is not None:
        shown.append((duration(max(0.0, beat.eta_s - _since(status))), "left"))
    return shown


def _since(status: RunStatus) -> float:
    """Return the seconds that a run has gone on since it last said how long it has."""
    return status.silence_s or 0.0 if status.state == "running" else 0.0


def _epsilon(status: RunStatus) -> tuple[str, str]:
    if status.epsilon is None and status.epsilon_budget is None:
        return "none", "privacy guarantee"
    budget = f" of {status.epsilon_budget:.3g}" if status.epsilon_budget is not None else ""
    return ("–" if status.epsilon is None else f"{status.epsilon:.3g}") + budget, "epsilon spent"


def _progress(status: RunStatus) -> str:
    beat = status.heartbeat
    if beat is None:
        return ""
    if not beat.phases:
        return html.paragraph("Waiting for nodes." if status.state == "running" else "It died before its first round.")
    return "".join(
        f'<div class="bar"><span>{escape(phase.name)}</span>'
        f'<progress max="{max(1, phase.rounds)}" value="{phase.done}"></progress>'
        f"<span>{phase.done} / {phase.rounds}</span></div>\n"
        for phase in beat.phases
    )


def _groups(metrics: LiveMetrics, headline: str) -> str:
    if len(metrics.groups) <= _MOST_GROUPS:
        return groups_table(metrics.groups, headline)
    some = dict(sorted(metrics.groups.items())[:_MOST_GROUPS])
    note = f"The first {_MOST_GROUPS} of {len(metrics.groups)} by name; the final report has all."
    return html.paragraph(note) + groups_table(some, headline)


def _failures(metrics: LiveMetrics) -> str:
    failed = metrics.failed
    if not failed:
        return ""
    rows = [[each.phase, str(each.round), str(each.failed)] for each in reversed(failed[-_MOST_FAILURES:])]
    total = f"{sum(each.failed for each in failed)} replies were missed in {len(failed)} rounds; the last of them:"
    return html.paragraph(total) + html.table(["phase", "round", "failed"], rows)
