"""The tables of the group-reward experiment, in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from fedalign.report.statistics import mean_interval, paired_difference
from simulations.group_rewards.arms import ADAPTIVE, ARMS, MEAN
from simulations.group_rewards.record import Results, Scores, SeedResult
from simulations.privacy.tables import cell

_PARTS: Mapping[str, Callable[[SeedResult], Scores]] = {
    "held-out questions": lambda result: result.held_out,
    "asked questions": lambda result: result.asked,
    "unseen groups, held-out questions": lambda result: result.unseen,
}
_COLUMNS: Mapping[str, Callable[[Scores], float]] = {
    "alignment": lambda scores: scores.alignment,
    "worst group": lambda scores: scores.alignment_worst,
    "reward": lambda scores: scores.reward,
    "worst group's": lambda scores: scores.reward_worst,
    "KL": lambda scores: scores.kl,
}


def tables(found: Results) -> str:
    """Return all tables, a section each."""
    sections = {part[0].upper() + part[1:]: _scores(found, part) for part in _PARTS}
    sections["Differences from the mean arm on held-out questions, paired by seed"] = _differences(found)
    sections["Adaptive alpha against the mean, in per cent of the mean arm's"] = _relative(found)
    return "\n".join(f"**{title}**\n\n{body}" for title, body in sections.items())


def relative(found: Results, part: str, column: str) -> dict[int, float]:
    """Return the change of a score from the mean arm to adaptive alpha, in per cent, by seed."""
    one, other = (_values(found, arm, part, column) for arm in (ADAPTIVE.name, MEAN.name))
    return {seed: 100 * (one[seed] / other[seed] - 1) for seed in one if seed in other}


def _values(found: Results, arm: str, part: str, column: str) -> dict[int, float]:
    return {seed: _COLUMNS[column](_PARTS[part](result)) for seed, result in found.get(arm, {}).items()}


def _scores(found: Results, part: str) -> str:
    rows = []
    for arm in ARMS:
        if found.get(arm.name):
            values = [_values(found, arm.name, part, column) for column in _COLUMNS]
            rows.append((arm.label, [cell(mean_interval(list(own.values())), ".3f") for own in values]))
    return _table(["arm", *_COLUMNS], rows)


def _differences(found: Results) -> str:
    rows = []
    for arm in ARMS:
        if arm.name != MEAN.name and found.get(arm.name):
            pairs = [
                paired_difference(
                    _values(found, arm.name, "held-out questions", column),
                    _values(found, MEAN.name, "held-out questions", column),
                )
                for column in _COLUMNS
            ]
            rows.append((arm.label, [cell(pair, "+.3f") for pair in pairs]))
    return _table(["difference", *_COLUMNS], rows)


def _relative(found: Results) -> str:
    columns = [column for column in _COLUMNS if column != "KL"]
    rows = []
    for part in _PARTS:
        values = [list(relative(found, part, column).values()) for column in columns]
        rows.append((part, [cell(mean_interval(own) if own else None, "+.1f") for own in values]))
    return _table(["", *columns], rows)


def _table(header: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    lines = [f"| {' | '.join(header)} |", "|---|" + "---:|" * (len(header) - 1)]
    lines += [f"| {label} | {' | '.join(cells)} |" for label, cells in rows]
    return "\n".join(lines) + "\n"
