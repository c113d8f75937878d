"""From the runs of the PluralLLM experiment to its table, its convergence figures and its plot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from fedalign.metrics.fairness import fairness
from fedalign.metrics.record import Metric
from fedalign.report.metrics_log import read_metrics
from fedalign.report.statistics import Estimate, mean_interval, paired_difference
from simulations.pluralllm.arms import Arm

SCORE = "unseen/alignment_score"
FRACTIONS = (0.95, 0.99)


@dataclass(frozen=True)
class Curve:
    """The headline metric of one run over its main phase.

    Parameters
    ----------
    rounds, scores, seconds : tuple
        At every evaluation: rounds done, mean score of the unseen groups, and training time so far in one process.
    """

    rounds: tuple[int, ...]
    scores: tuple[float, ...]
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class SeedResult:
    """One arm under one seed.

    Parameters
    ----------
    metrics : dict from str to float
        Mean, worst, gap, CoV and fairness index over the unseen groups, and the held-out score.
    groups : dict from group to float
    curve : Curve
    """

    metrics: dict[str, float]
    groups: dict[str, float]
    curve: Curve


def read_run(directory: Path) -> tuple[dict[str, float], dict[str, dict[str, float]], list[Metric]]:
    """Return a run's final metrics, its groups' and all of its records."""
    summary = json.loads((directory / "summary.json").read_text())
    return summary["metrics"], summary["groups"], read_metrics(directory / "metrics.jsonl")


def read_seed(arm: Arm, directory: Path) -> SeedResult:
    """Average the member runs of an arm's seed, group by group."""
    runs = [read_run(directory / str(number)) for number in range(len(arm.members))]
    unseen = [group for group, values in runs[0][1].items() if SCORE in values]
    groups = {group: float(np.mean([run[1][group][SCORE] for run in runs])) for group in unseen}
    spread = fairness(list(groups.values()))
    metrics = {
        "score": spread.mean,
        "worst": spread.worst,
        "gap": spread.gap,
        "cov": spread.cov,
        "fairness_index": spread.index,
    }
    held_out = [run[0]["test/alignment_score"] for run in runs if "test/alignment_score" in run[0]]
    if held_out:
        metrics["held_out"] = float(np.mean(held_out))
    curves = [read_curve(run[2]) for run in runs]
    mean = Curve(
        curves[0].rounds,
        tuple(np.mean([c.scores for c in curves], axis=0).tolist()),
        tuple(np.mean([c.seconds for c in curves], axis=0).tolist()),
    )
    return SeedResult(metrics, groups, mean)


def read_curve(records: Sequence[Metric]) -> Curve:
    """Return the headline metric over the last phase of a run; training time includes the phases before."""
    main = records[-1].phase
    seconds, elapsed = 0.0, {0: 0.0}
    scores: dict[int, float] = {}
    for record in records:
        if record.name == "train_seconds":
            seconds += record.value
            elapsed[record.round if record.phase == main else 0] = seconds
        elif record.phase == main and record.group is None and record.name == SCORE:
            scores[record.round] = record.value
    return Curve(tuple(scores), tuple(scores.values()), tuple(elapsed[number] for number in scores))


def reached(curve: Curve, target: float) -> int | None:
    """Return the place of the first evaluation at or above ``target``, None if there is none."""
    return next((place for place, score in enumerate(curve.scores) if score >= target), None)


def convergence(
    arm: Arm, seed: int, results: Mapping[str, Mapping[int, SeedResult]], steps_per_round: int
) -> dict[str, float | None]:
    """Return rounds, sequential steps and seconds to each fraction of the centralised gain over uniform."""
    assert arm.reference is not None
    floor = results["uniform"][seed].metrics["score"]
    gain = results[arm.reference][seed].metrics["score"] - floor
    found: dict[str, float | None] = {}
    curve = results[arm.name][seed].curve
    for fraction in FRACTIONS:
        place = reached(curve, floor + fraction * gain)
        name = f"{fraction:.0%}"
        found[f"rounds_to_{name}"] = None if place is None else float(curve.rounds[place])
        found[f"steps_to_{name}"] = None if place is None else float(curve.rounds[place] * steps_per_round)
        found[f"seconds_to_{name}"] = None if place is None else curve.seconds[place]
    return found


def steps_per_round(arm: Arm, directory: Path) -> int:
    """Return the local gradient steps of a round, from the run's own config."""
    import yaml

    config = yaml.safe_load((directory / arm.name / "seed-0" / "0" / "config.yaml").read_text())
    return int(config["method"]["local"]["steps"])


def write_results(arms: Sequence[Arm], output: Path, seeds: int, results: Path) -> str:
    """Write ``results.json``, ``table.md`` and ``curves.png``, and return the table."""
    found = {
        arm.name: {seed: read_seed(arm, output / arm.name / f"seed-{seed}") for seed in range(seeds)} for arm in arms
    }
    converged = {
        arm.name: [convergence(arm, seed, found, steps_per_round(arm, output)) for seed in range(seeds)]
        for arm in arms
        if arm.reference is not None
    }
    table = "\n".join([main_table(arms, found), convergence_table(arms, converged), differences_table(found)])
    results.mkdir(parents=True, exist_ok=True)
    content = {
        "seeds": seeds,
        "arms": {name: {str(seed): asdict(result) for seed, result in by.items()} for name, by in found.items()},
        "convergence": converged,
    }
    (results / "results.json").write_text(json.dumps(content, indent=1) + "\n")
    (results / "table.md").write_text(table)
    curves_plot(arms, found).savefig(results / "curves.png", dpi=120)
    return table


def main_table(arms: Sequence[Arm], found: Mapping[str, Mapping[int, SeedResult]]) -> str:
    """Return the arms' scores, mean and 95 % confidence interval over seeds, as Markdown."""
    columns = {
        "score": "unseen AS",
        "worst": "worst",
        "gap": "gap",
        "cov": "CoV",
        "fairness_index": "FI",
        "held_out": "held-out AS",
    }
    lines = [f"| arm | {' | '.join(columns.values())} |", "|---|" + "---:|" * len(columns)]
    for arm in arms:
        results = found[arm.name].values()
        cells = []
        for key in columns:
            values = [result.metrics[key] for result in results if key in result.metrics]
            cells.append(cell(mean_interval(values)) if values else "–")
        lines.append(f"| {arm.label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def convergence_table(arms: Sequence[Arm], converged: Mapping[str, Sequence[Mapping[str, float | None]]]) -> str:
    """Return the mean cost of reaching each fraction of the centralised gain, over the seeds that reached it."""
    keys = [f"{unit}_to_{fraction:.0%}" for fraction in FRACTIONS for unit in ("rounds", "steps", "seconds")]
    lines = [f"| arm | {' | '.join(key.replace('_', ' ') for key in keys)} |", "|---|" + "---:|" * len(keys)]
    for arm in arms:
        if arm.name not in converged:
            continue
        cells = []
        for key in keys:
            values = [seed[key] for seed in converged[arm.name]]
            there = [value for value in values if value is not None]
            short = "" if len(there) == len(values) else f" ({len(there)} of {len(values)})"
            cells.append(f"{np.mean(there):.1f}{short}" if there else "never")
        lines.append(f"| {arm.label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


PAIRS = (
    ("federated", "centralised"),
    ("federated_prior", "centralised_prior"),
    ("federated_prior", "federated"),
    ("federated_prior", "centralised"),
    ("federated_prior", "question_mean"),
    ("federated", "question_mean"),
    ("federated", "local"),
    ("faithful_federated", "faithful_centralised"),
)


def differences_table(found: Mapping[str, Mapping[int, SeedResult]]) -> str:
    """Return paired differences of unseen score and worst group, seed by seed."""
    lines = ["| difference, paired by seed | unseen AS | worst |", "|---|---:|---:|"]
    for one, other in PAIRS:
        cells = []
        for key in ("score", "worst"):
            values = {seed: result.metrics[key] for seed, result in found[one].items()}
            difference = paired_difference(values, {s: r.metrics[key] for s, r in found[other].items()})
            cells.append("–" if difference is None else cell(difference, signed=True))
        lines.append(f"| {one} − {other} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def cell(estimate: Estimate, signed: bool = False) -> str:
    """Return ``mean ± half width`` with four decimals."""
    mean = f"{estimate.mean:+.4f}" if signed else f"{estimate.mean:.4f}"
    return mean if estimate.half_width is None else f"{mean} ± {estimate.half_width:.4f}"


def curves_plot(arms: Sequence[Arm], found: Mapping[str, Mapping[int, SeedResult]]) -> Figure:
    """Draw the unseen groups' score over rounds, mean and 95 % confidence interval over seeds."""
    figure = Figure(figsize=(8.5, 4.8), layout="constrained")
    axes = figure.add_subplot()
    for arm in arms:
        if arm.name.startswith("faithful"):
            continue
        curves = [result.curve for result in found[arm.name].values()]
        estimates = [mean_interval(list(scores)) for scores in zip(*(c.scores for c in curves), strict=True)]
        means = np.array([e.mean for e in estimates])
        if len(means) <= 2:
            style = ":" if arm.name == "uniform" else "--"
            axes.axhline(means[-1], color="0.45", linestyle=style, linewidth=1.4, label=arm.label)
            continue
        widths = np.array([e.half_width or 0.0 for e in estimates])
        (line,) = axes.plot(curves[0].rounds, means, linewidth=1.8, label=arm.label)
        axes.fill_between(curves[0].rounds, means - widths, means + widths, color=line.get_color(), alpha=0.15)
    axes.set_xlabel("rounds (6 sequential steps each)")
    axes.set_ylabel("alignment score of the unseen groups")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    return figure
