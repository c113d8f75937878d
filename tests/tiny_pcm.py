"""The smallest federation that trains experts and merges them under a control model."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from fedalign.run import start
from tests.tiny import use_cache
from tests.tiny_policy import language_model_of

PCM = (
    "data.users=12",
    "data.demonstrations=3",
    "data.comparisons=2",
    "data.test_demonstrations=2",
    "data.test_comparisons=2",
    "method.lengths.prompt=8",
    "method.lengths.response=6",
    "method.experts.rounds=1",
    "method.experts.local.steps=2",
    "method.experts.local.lr=0.05",
    "model.rank=2",
    "federation.rounds=1",
    "federation.sampler.size=2",
    "federation.evaluate_every=1",
)
"""Overrides of any merging that need a model besides: ``model.model``."""

CONTROL = (
    "method.merging.local.steps=2",
    "method.merging.local.lr=0.5",
    "method.merging.control.hidden=8",
    "method.merging.control.layers=1",
    "method.merging.control.heads=2",
    "method.merging.control.intermediate=8",
)
"""Overrides of a control model that is a transformer."""


def pcm_run(base: Path, *overrides: str) -> Path:
    """Return the directory of a finished run with a control model; trains at the first call in a test session.

    Tests must not change it: copy it first.
    """
    return other_run(base, "method=pcm", *CONTROL, *overrides)


def other_run(base: Path, method: str, *overrides: str) -> Path:
    """Return the directory of a finished run of a method that merges experts some way; as :func:`pcm_run`."""
    directory = base / f"pcm-{hashlib.sha256(repr((method, overrides)).encode()).hexdigest()[:12]}"
    if not (directory / "summary.json").is_file():
        model = f"model.model={language_model_of(base)}"
        with pytest.MonkeyPatch.context() as patch:
            use_cache(base, patch)
            start([method, *PCM, model, *overrides, f"output={directory}"])
    return directory
