"""The tables of the FedVPA-GP experiment, in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fedalign.report.statistics import Estimate, mean_interval, paired_difference
from simulations.fedvpa.arms import ARMS, MAIN, SETTINGS, STRICT, Arm, Setting, arms_of, setting_named

BySeed = Mapping[int, float]
Metrics = Mapping[str, BySeed]
Results = Mapping[str, Mapping[str, Metrics]]
"""Setting, arm, metric, seed."""


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Parameters
    ----------
    title : str
    value : callable from an arm's metrics to an Estimate or None
    form : str
        Of a number, in Python's format language.
    scale : float
        What a value is multiplied by; 100 for percentages.
    """

    title: str
    value: Callable[[Metrics], Estimate | None]
    form: str
    scale: float = 1.0

    def cell(self, metrics: Metrics) -> str:
        """Return mean ± half width, or a dash."""
        estimate = self.value(metrics)
        if estimate is None:
            return "–"
        mean = format(self.scale * estimate.mean, self.form)
        if estimate.half_width is None:
            return mean
        return f"{mean} ± {format(self.scale * estimate.half_width, self.form.lstrip('+z'))}"


def tables(found: Results) -> str:
    """Return all tables, a section a setting."""
    return "\n".join(_section(setting_named(name), arms) for name, arms in found.items())


def headline(arms: Mapping[str, Metrics]) -> str:
    """Return what arms are compared by: accuracy on conflicting pairs where some are known, else on all."""
    known = any("test/accuracy_conflict" in metrics for metrics in arms.values())
    return "accuracy_conflict" if known else "accuracy"


def beside(found: Results) -> str:
    """Return accuracy on HH-RLHF in the form of the paper's table: helpful / harmless, a column a number of clients."""
    settings = [setting for setting in SETTINGS if setting.family == STRICT and setting.name in found]
    lines = [f"| arm | {' | '.join(f'N = {setting.clients}' for setting in settings)} |"]
    lines.append("|---|" + "---:|" * len(settings))
    for arm in ARMS:
        if any(arm.name in found[setting.name] for setting in settings):
            cells = [_by_category(setting, found[setting.name].get(arm.name, {})) for setting in settings]
            lines.append(f"| {arm.label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _by_category(setting: Setting, metrics: Metrics) -> str:
    return " / ".join(_percent(group, f"test/accuracy@{group}").cell(metrics) for group in setting.groups)


def _section(setting: Setting, arms: Mapping[str, Metrics]) -> str:
    rows = [arm for arm in arms_of(setting) if arm.name in arms]
    seeds = sorted({seed for metrics in arms.values() for seed in metrics["seconds"]})
    latent = [arm for arm in rows if "test/active_units" in arms[arm.name]]
    parts = [
        f"### {setting.label[0].upper()}{setting.label[1:]}\n",
        f"Seeds: {', '.join(map(str, seeds))}.\n",
        _table(rows, arms, [*_accuracies(arms), *_differences(arms), *_costs()], len(seeds)),
    ]
    if latent:
        parts.append(_table(latent, arms, _latent(), len(seeds)))
    if setting.groups:
        parts.append(_table(rows, arms, _by_group(setting), len(seeds)))
    return "\n".join(parts)


def _table(rows: Sequence[Arm], arms: Mapping[str, Metrics], columns: Sequence[Column], seeds: int) -> str:
    """Return a table without the columns that nobody has a value for."""
    shown = [column for column in columns if any(column.value(arms[arm.name]) is not None for arm in rows)]
    lines = [f"| arm | {' | '.join(column.title for column in shown)} |", "|---|" + "---:|" * len(shown)]
    for arm in rows:
        metrics = arms[arm.name]
        done = len(metrics["seconds"])
        label = arm.label if done == seeds else f"{arm.label} ({done} of {seeds} seeds)"
        lines.append(f"| {label} | {' | '.join(column.cell(metrics) for column in shown)} |")
    return "\n".join(lines) + "\n"


def _mean(name: str) -> Callable[[Metrics], Estimate | None]:
    return lambda metrics: mean_interval(list(metrics[name].values())) if name in metrics else None


def _percent(title: str, name: str) -> Column:
    return Column(title, _mean(name), ".1f", 100.0)


def _accuracies(arms: Mapping[str, Metrics]) -> list[Column]:
    name = headline(arms)

    def gap(metrics: Metrics) -> Estimate | None:
        seen, unseen = metrics.get(f"test/{name}"), metrics.get(f"unseen/{name}")
        return None if seen is None or unseen is None else paired_difference(unseen, seen)

    conflict = ", conflict" if name == "accuracy_conflict" else ""
    return [
        _percent("seen", "test/accuracy"),
        _percent("unseen", "unseen/accuracy"),
        _percent("seen, conflict", "test/accuracy_conflict"),
        _percent("unseen, conflict", "unseen/accuracy_conflict"),
        Column(f"unseen − seen{conflict}", gap, "+z.1f", 100.0),
    ]


def _differences(arms: Mapping[str, Metrics]) -> list[Column]:
    """Return what the main arm is ahead by, paired by seed."""
    stem = headline(arms)
    main = arms.get(MAIN, {})

    def ahead(name: str) -> Callable[[Metrics], Estimate | None]:
        def value(metrics: Metrics) -> Estimate | None:
            if metrics is main or name not in metrics or name not in main:
                return None
            return paired_difference(main[name], metrics[name])

        return value

    conflict = ", conflict" if stem == "accuracy_conflict" else ""
    populations = {"test": "seen", "unseen": "unseen"}
    return [
        Column(f"full − arm, {label}{conflict}", ahead(f"{population}/{stem}"), "+z.1f", 100.0)
        for population, label in populations.items()
    ]


def _costs() -> list[Column]:
    return [Column("MB up a round", _mean("up_mb_per_round"), ".2f"), Column("seconds", _mean("seconds"), ".0f")]


def _latent() -> list[Column]:
    def agreement(metrics: Metrics) -> Estimate | None:
        # Without groups to find there is nothing that clusters could agree with; the probe is then left out.
        return _mean("latent/cluster_agreement")(metrics) if "latent/linear_probe" in metrics else None

    return [
        _percent("own z", "test/accuracy"),
        _percent("prior z", "test/accuracy_prior_z"),
        _percent("swapped z", "test/accuracy_swapped_z"),
        _percent("own z, conflict", "test/accuracy_conflict"),
        _percent("prior z, conflict", "test/accuracy_prior_z_conflict"),
        _percent("swapped z, conflict", "test/accuracy_swapped_z_conflict"),
        Column("active units", _mean("test/active_units"), ".1f"),
        Column("KL (nats)", _mean("test/kl"), "z.2f"),
        _percent("linear probe", "latent/linear_probe"),
        Column("silhouette", _mean("latent/silhouette"), "z.2f"),
        Column("ARI", agreement, "z.2f"),
    ]


def _by_group(setting: Setting) -> list[Column]:
    whose = {"": "", ", prior z": "_prior_z", ", swapped z": "_swapped_z"}
    return [
        _percent(f"{group}{title}", f"test/accuracy{suffix}@{group}")
        for group in setting.groups
        for title, suffix in whose.items()
    ]
