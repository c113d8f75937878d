"""Where a run's checkpoints lie and how far each had come, found without reading a tensor."""

from __future__ import annotations

import json
from pathlib import Path

NEWEST, BEST = "newest", "best"


def whole(directory: Path, name: str) -> Path:
    """Return the place of a checkpoint that is whole, if there is one."""
    place = directory / name
    # A process that died between the two renames of a save leaves only the older one.
    return place if place.exists() else directory / f".{name}.old"


def progress_at(directory: Path, name: str) -> tuple[int, int] | None:
    """Return the phase's index and the round of a checkpoint; None if there is none that can be read."""
    try:
        facts = json.loads((whole(directory, name) / "checkpoint.json").read_text())
        return int(facts["phase"]), int(facts["round"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
