"""Which runs belong together: arms that differ only in the seed, and a short label that tells arms apart."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedalign.report.run_directory import RunDirectory
from fedalign.report.summary import Summary

_NOT_SETTINGS = ("seed", "name", "output", "logger")
"""Keys of a configuration that do not change what is learnt, or that a comparison averages over."""

_ABSENT = "–"


@dataclass(frozen=True)
class Run:
    """One run to compare.

    Parameters
    ----------
    directory : Path
    settings : mapping from dotted key to value as text
        The configuration without the seed and what has no influence on results.
    summary : Summary
    """

    directory: Path
    settings: Mapping[str, str]
    summary: Summary


@dataclass(frozen=True)
class Arm:
    """Runs of one configuration over seeds.

    Parameters
    ----------
    label : str
        Unique among the arms, as short as that allows.
    settings : mapping from dotted key to value as text
        Every key in which the arms differ, with this arm's value.
    runs : mapping from seed to Run
    """

    label: str
    settings: Mapping[str, str]
    runs: Mapping[int, Run]

    def values(self, metric: str) -> dict[int, float]:
        """Return the metric of every seed that has it."""
        found = {seed: run.summary.metrics.get(metric) for seed, run in self.runs.items()}
        return {seed: value for seed, value in found.items() if value is not None}


def read_run(path: Path) -> Run:
    """Read a finished run.

    Raises
    ------
    UserError
        If ``path`` is no run directory, the run has not ended, or a file of it is broken.
    """
    directory = RunDirectory.open(path)
    config = {key: value for key, value in directory.read_config().items() if key not in _NOT_SETTINGS}
    return Run(path, flatten(config), directory.read_summary())


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as dotted keys with their values as text."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return flat


def group_runs(runs: Sequence[Run]) -> list[Arm]:
    """Return the arms in order of their first run; of two runs with one seed in an arm, the later counts."""
    together: dict[tuple[tuple[str, str], ...], dict[int, Run]] = {}
    for run in runs:
        key = tuple(sorted(run.settings.items()))
        together.setdefault(key, {})[run.summary.seed] = run
    members = list(together.values())
    settings = [next(iter(member.values())).settings for member in members]
    differing = differing_keys(settings)
    names = labels(settings, differing)
    if len(members) == 1:
        names = [next(iter(members[0].values())).summary.method]
    return [
        Arm(name, {key: own.get(key, _ABSENT) for key in differing}, member)
        for name, own, member in zip(names, settings, members, strict=True)
    ]


def differing_keys(settings: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the keys that are not the same in all settings: names first, then classes, then the others."""
    keys = list(dict.fromkeys(key for own in settings for key in own))
    differing = [key for key in keys if len({own.get(key) for own in settings}) > 1]
    return sorted(differing, key=lambda key: (not key.endswith(".name"), not key.endswith("._target_")))


def labels(settings: Sequence[Mapping[str, str]], differing: Sequence[str]) -> list[str]:
    """Return one label for each of the settings, of the fewest keys that tell it from the others.

    A key is used only when it separates settings that the keys before it left together, so a method's name is
    enough however many of its own keys come with it.
    """
    parts: list[list[tuple[str, str]]] = [[] for _ in settings]
    seen: list[tuple[str | None, ...]] = [() for _ in settings]
    used: list[str] = []
    for key in differing:
        alone = [seen.count(values) == 1 for values in seen]
        finer = [(*values, own.get(key)) for values, own in zip(seen, settings, strict=True)]
        if len(set(finer)) == len(set(seen)):
            continue
        used.append(key)
        for part, own, done in zip(parts, settings, alone, strict=True):
            if not done and key in own:
                part.append((key, own[key]))
        seen = finer
    classes = {own[key] for key in used if key.endswith("_target_") for own in settings if key in own}
    texts = [[f"{_short(key, used)}={_value(value, classes)}" for key, value in part] for part in parts]
    return [", ".join(text) or "otherwise" for text in texts]


def _short(key: str, used: Collection[str]) -> str:
    """Return the last part of the key that says something, or all of it where another key has the same."""
    alone = sum(_last(other) == _last(key) for other in used) == 1
    return _last(key) if alone else key


def _last(key: str) -> str:
    """Return the group of a name or a class, otherwise the key's last part."""
    parts = [part for part in key.split(".") if part not in ("name", "_target_")]
    return parts[-1] if parts else key


def _value(text: str, classes: Collection[str]) -> str:
    """Return a class by its own name where no other class is called so."""
    name = text.rpartition(".")[2]
    alone = sum(other.rpartition(".")[2] == name for other in classes) == 1
    return name if text in classes and alone else text
