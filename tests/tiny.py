"""The smallest world in which every command can be tried: a run takes about a second."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedalign.run import start

DATA = (
    "data.groups=5",
    "data.questions=40",
    "data.world_seed=3",
    "partition.unseen=2",
    "partition.min_questions=8",
    "encoder.size=32",
    "method.evaluation.draws=1",
    "method.evaluation.context_questions=6",
    "federation.rounds=1",
)
"""Overrides that fit every method."""

TINY = (
    *DATA,
    "model.width=16",
    "model.layers=1",
    "model.heads=2",
    "method.local.steps=2",
    "method.episode.min_questions=3",
    "method.episode.max_questions=8",
)
"""Overrides of the default method."""


def use_cache(base: Path, patch: pytest.MonkeyPatch) -> None:
    """Keep cached embeddings with the other files of the tests."""
    patch.setenv("FEDALIGN_CACHE", str(base / "cache"))


def trained_run(base: Path, *overrides: str) -> Path:
    """Return the directory of a finished tiny run; trains at the first call in a test session.

    Tests must not change it: copy it first.
    """
    directory = base / ("trained-" + "-".join(o.replace("=", "_") for o in overrides)).rstrip("-")
    if not (directory / "summary.json").is_file():
        with pytest.MonkeyPatch.context() as patch:
            use_cache(base, patch)
            start([*(DATA if overrides else TINY), *overrides, f"output={directory}"])
    return directory
