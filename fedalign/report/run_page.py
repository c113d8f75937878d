"""The report of one run as a page: key numbers, plots, groups, privacy, time, configuration, environment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import yaml

from fedalign.report import html
from fedalign.report.numbers import byte_count, duration, number
from fedalign.report.summary import Summary

NO_PRIVACY = "no privacy guarantee: the run was trained without differential privacy"

_CAPTIONS = {
    "headline": "Mean over groups (line), worst group (dashed) and the span of all groups (band), by round.",
    "groups": "Final value of every group; the dashed lines are the means.",
    "training_loss": "Mean local training loss of the clients of a round.",
    "fairness": "How evenly groups are served: fairness index 1 / (1 + CoV²), and best group minus worst.",
    "accuracy_by_z": "Final accuracy when predictions are made with a person's own latent z, the prior's mean, and "
    "another group's z; rings are groups, the dotted line is chance, and groups are known to disagree on conflicting "
    "pairs. A model that uses z loses accuracy with another group's.",
    "latent_use": "What the latents know about people: KL divergence of their posteriors from the prior, and "
    "dimensions whose posterior mean varies over people. Near zero the latent has collapsed.",
    "latent_space": "Posterior means of people on their first two principal components, by preference group.",
}
_PRIVACY_WORDS = {"relation": "neighbouring relation", "sampling": "client sampling"}


def run_page(
    name: str,
    summary: Summary,
    headline: str,
    plots: Mapping[str, bytes],
    config: Mapping[str, Any],
    environment: Mapping[str, Any],
) -> str:
    """Return the report of a run as one HTML document.

    Parameters
    ----------
    name : str
        Name of the run's directory.
    summary : Summary
    headline : str
        Name of the metric that is shown large and that groups are sorted by.
    plots : mapping from file stem to PNG bytes
    config, environment : mapping
        As in ``config.yaml`` and ``environment.json``.
    """
    failed = summary.status == "failed"
    title = f"{summary.method} on {summary.data}"
    note = f"run {name}, {summary.rounds} rounds, seed {summary.seed}"
    figures = "".join(html.figure(png, _CAPTIONS.get(name, name)) for name, png in plots.items())
    body = [
        html.heading(title, note, summary.status, good=not failed),
        html.section("Why it failed", html.paragraph(summary.reason or "", bad=True)) if failed else "",
        html.tiles(_key_numbers(summary, headline)),
        html.section("Results", figures),
        html.section("Metrics", metrics_table(summary.metrics)),
        html.section("Groups", groups_table(summary.groups, headline)),
        html.section("Privacy", _privacy(summary.privacy)),
        html.section("Time and traffic", _costs(summary)),
        html.section("How it was made", _origin(config, environment)),
    ]
    return html.page(title, "".join(body))


def _key_numbers(summary: Summary, headline: str) -> list[tuple[str, str]]:
    stem = headline.partition("/")[2] or headline
    names = [headline, f"{headline}_worst", f"initial/{stem}"]
    shown = [(number(summary.metrics[name]), name) for name in names if name in summary.metrics]
    told = summary.privacy or {}
    epsilon = told.get("epsilon")
    without = "secure sum" if told.get("secure_sum") else "none"
    guarantee = without if epsilon is None else f"ε = {epsilon:.3g}"
    return [*shown, (guarantee, "privacy guarantee"), (duration(summary.timing.total_s), "wall time")]


def metrics_table(metrics: Mapping[str, float]) -> str:
    """Return a row a metric and a column a population."""
    found = {name.partition("/")[0] for name in metrics}
    usual = [population for population in ("initial", "train", "test", "unseen") if population in found]
    populations = [*usual, *sorted(found.difference(usual))]
    stems = list(dict.fromkeys(name.partition("/")[2] for name in metrics))
    rows = [[stem, *(_value(metrics.get(f"{population}/{stem}")) for population in populations)] for stem in stems]
    return html.table(["metric", *populations], rows)


def groups_table(groups: Mapping[str, Mapping[str, float]], headline: str) -> str:
    """Return a row a group, the best served first."""
    names = list(dict.fromkeys(name for values in groups.values() for name in values))
    stem = headline.partition("/")[2] or headline

    def rank(item: tuple[str, Mapping[str, float]]) -> tuple[float, str]:
        scores = [item[1][f"{p}/{stem}"] for p in ("unseen", "test") if f"{p}/{stem}" in item[1]]
        return (-scores[0] if scores else float("inf"), item[0])

    ordered = sorted(groups.items(), key=rank)
    rows = [[group, *(_value(values.get(name)) for name in names)] for group, values in ordered]
    return html.table(["group", *names], rows)


def _privacy(privacy: Mapping[str, Any] | None) -> str:
    if privacy is None:
        return html.paragraph(NO_PRIVACY)
    rows: list[list[html.Cell]] = [
        [_PRIVACY_WORDS.get(key, key.replace("_", " ")), _plain(value)]
        for key, value in privacy.items()
        if key != "sentence"
    ]
    sentence = html.paragraph(str(privacy["sentence"])) if "sentence" in privacy else ""
    return sentence + html.table(["term", "value"], rows)


def _costs(summary: Summary) -> str:
    timing, traffic = summary.timing, summary.traffic
    rows: list[list[html.Cell]] = [
        ["total", html.Number(duration(timing.total_s))],
        ["a round", html.Number(duration(timing.per_round_s))],
        ["client updates", html.Number(number(timing.client_updates))],
        ["a client update", html.Number(f"{timing.per_client_update_ms:.2f} ms")],
        ["added by the engine to each", html.Number(f"{timing.engine_overhead_ms:.2f} ms")],
        ["server to clients", html.Number(byte_count(traffic.down_bytes))],
        ["clients to server", html.Number(byte_count(traffic.up_bytes))],
    ]
    if timing.simulated_s is not None:
        rows.append(["simulated time of all rounds", html.Number(duration(timing.simulated_s))])
    return html.table(["what", "how much"], rows)


def _origin(config: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
    settings = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
    machine = yaml.safe_dump(dict(environment), sort_keys=False, allow_unicode=True)
    return html.folded("Configuration", settings) + (html.folded("Environment", machine) if environment else "")


def _value(value: float | None) -> html.Cell:
    return html.Number("–" if value is None else number(value))


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_plain(item)}" for key, item in value.items()) or "–"
    if isinstance(value, list):
        return "; ".join(map(_plain, value)) or "–"
    if value is None:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
