"""What experiments with arms and seeds share: finished runs, their record as JSON, and a README's tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Result = TypeVar("Result", bound="DataclassInstance")
Read = TypeVar("Read")


def finished_runs(output: Path, arms: Iterable[str], read: Callable[[Path], Read]) -> dict[str, dict[int, Read]]:
    """Return what ``read`` finds in each finished run, by arm and seed."""
    found: dict[str, dict[int, Read]] = {}
    for arm in arms:
        for directory in sorted((output / arm).glob("seed-*")):
            if (directory / "model" / "model.json").is_file():
                found.setdefault(arm, {})[int(directory.name.removeprefix("seed-"))] = read(directory)
    return found


def to_json(found: Mapping[str, Mapping[int, Result]]) -> str:
    """Return the content of ``results.json``, one line a run."""
    arms = []
    for name, seeds in found.items():
        lines = [f"  {json.dumps(str(seed))}: {json.dumps(asdict(result))}" for seed, result in sorted(seeds.items())]
        arms.append(f" {json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n }")
    return "{\n" + ",\n".join(arms) + "\n}\n"


def between_marks(readme: str, marks: tuple[str, str], text: str) -> str:
    """Return a README with ``text`` between two marks.

    Raises
    ------
    ValueError
        If it has no marks.
    """
    head, opening, rest = readme.partition(marks[0])
    _, closing, tail = rest.partition(marks[1])
    if not opening or not closing:
        raise ValueError(f"no {marks[0]} ... {marks[1]} in the README")
    return f"{head}{opening}\n\n{text}\n{closing}{tail}"
