"""The tables of the privacy experiment, in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from fedalign.report.statistics import Estimate, mean_interval, paired_difference
from simulations.privacy.arms import ADAPTIVE, DISTRIBUTED, FAMILIES, LEVELS, UNIFORM
from simulations.privacy.record import Results, SeedResult

_TITLES = {
    **{level: f"epsilon {level.removeprefix('eps')}" for level in LEVELS},
    "clip": "clipped, no noise",
    "none": "none",
}
_UNTRAINED = "untrained network"


def tables(found: Results) -> str:
    """Return all tables, a section each."""
    sections = {
        "Alignment score of the unseen countries": _matrix(found, lambda result: result.score, ".4f"),
        "Lowest score of an unseen country": _matrix(found, lambda result: result.worst, ".4f"),
        "Noise over clipping bound": _matrix(found, lambda result: result.noise_multiplier, ".2f", spread=False),
        "Other arms": _others(found),
        "Differences of the score, paired by seed": _differences(found),
        "Differences between arms at epsilon 4, paired by seed": _points(found),
    }
    return "\n".join(f"**{title}**\n\n{body}" for title, body in sections.items())


def values_of(seeds: Mapping[int, SeedResult], value: Callable[[SeedResult], float | None]) -> dict[int, float]:
    """Return a number of every seed that has it."""
    read = {seed: value(result) for seed, result in seeds.items()}
    return {seed: number for seed, number in read.items() if number is not None}


def untrained(found: Results) -> dict[int, float]:
    """Return the score of the network before its first round, by seed."""
    return values_of(found.get("network_none", {}), lambda result: result.untrained)


def cell(estimate: Estimate | None, form: str, spread: bool = True) -> str:
    """Return mean ± half width, or a dash."""
    if estimate is None:
        return "–"
    mean = format(estimate.mean, form)
    if estimate.half_width is None or not spread:
        return mean
    return f"{mean} ± {format(estimate.half_width, form.lstrip('+'))}"


def _matrix(found: Results, value: Callable[[SeedResult], float | None], form: str, spread: bool = True) -> str:
    """Return a row a family, a column a level."""
    rows = []
    for family in FAMILIES:
        seeds = [values_of(found.get(f"{family.name}_{level}", {}), value) for level in LEVELS]
        rows.append((family.label, [cell(_mean(own), form, spread) for own in seeds]))
    return _table(["arm", *(_TITLES[level] for level in LEVELS)], rows)


def _others(found: Results) -> str:
    rows = [(_UNTRAINED, [cell(_mean(untrained(found)), ".4f"), "–", "–", "–"])]
    most = max((len(seeds) for seeds in found.values()), default=0)
    for arm in (UNIFORM, ADAPTIVE, DISTRIBUTED):
        seeds = found.get(arm.name, {})
        short = "" if len(seeds) == most else f" (seeds: {len(seeds)})"
        shown = (
            cell(_mean(values_of(seeds, lambda result: result.score)), ".4f"),
            cell(_mean(values_of(seeds, lambda result: result.worst)), ".4f"),
            cell(_mean(values_of(seeds, lambda result: result.noise_multiplier)), ".2f", spread=False),
            cell(_mean(values_of(seeds, lambda result: result.clients or None)), ".0f", spread=False),
        )
        if seeds:
            rows.append((arm.label + short, list(shown)))
    return _table(["arm", "score", "lowest", "noise over bound", "clients a round"], rows)


def _differences(found: Results) -> str:
    """Return differences between families at each level, and what each level is worth over no training."""
    network, prior, mean = (family.name for family in FAMILIES)
    rows = []
    for one, other in ((network, mean), (prior, mean), (prior, network)):
        cells = [_difference(_scores(found, f"{one}_{x}"), _scores(found, f"{other}_{x}")) for x in LEVELS]
        rows.append((f"{one} − {other}", cells))
    for one in (network, prior, mean):
        cells = [_difference(_scores(found, f"{one}_{x}"), _scores(found, UNIFORM.name)) for x in LEVELS]
        rows.append((f"{one} − uniform", cells))
    return _table(["difference", *(_TITLES[level] for level in LEVELS)], rows)


def _points(found: Results) -> str:
    pairs = [(ADAPTIVE.name, "network_eps4"), (DISTRIBUTED.name, "network_eps4"), (DISTRIBUTED.name, "mean_eps4")]
    rows = [(f"{a} − {b}", [_difference(_scores(found, a), _scores(found, b))]) for a, b in pairs]
    return _table(["difference", "score"], rows)


def _scores(found: Results, arm: str) -> dict[int, float]:
    return values_of(found.get(arm, {}), lambda result: result.score)


def _difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> str:
    return cell(paired_difference(values, baseline), "+.4f")


def _mean(values: Mapping[int, float]) -> Estimate | None:
    return mean_interval(list(values.values())) if values else None


def _table(header: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    lines = [f"| {' | '.join(header)} |", "|---|" + "---:|" * (len(header) - 1)]
    lines += [f"| {label} | {' | '.join(cells)} |" for label, cells in rows]
    return "\n".join(lines) + "\n"
