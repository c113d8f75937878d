"""The smallest federation that aligns a language model: fine-tuning, perhaps a reward model, reinforcement learning."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from fedalign.run import start
from tests.tiny import use_cache
from tests.tiny_policy import language_model_of

ALIGNMENT = (
    "data.users=12",
    "data.demonstrations=2",
    "data.comparisons=2",
    "data.test_demonstrations=2",
    "data.test_comparisons=2",
    "method.lengths.prompt=8",
    "method.lengths.response=6",
    "method.sft.rounds=1",
    "method.sft.local.steps=2",
    "method.sft.local.lr=0.05",
    "method.rl.local.steps=2",
    "method.rl.local.lr=0.05",
    "model.rank=2",
    "federation.rounds=1",
    "federation.sampler.size=2",
    "federation.evaluate_every=1",
)
"""Overrides that need a model besides: ``model.model``."""

PREFERENCES = (
    "method=dprlhf_preferences",
    *ALIGNMENT,
    "method.reward_model.rounds=1",
    "method.reward_model.local.steps=2",
)
"""The same with a reward model."""


def aligned_run(base: Path, *overrides: str) -> Path:
    """Return the directory of a finished run of three stages; trains at the first call in a test session.

    Tests must not change it: copy it first.
    """
    return _run(base, "aligned", *PREFERENCES, *overrides)


def given_reward_run(base: Path, *overrides: str) -> Path:
    """Return the directory of a finished run of two stages whose reward is given; as :func:`aligned_run`."""
    return _run(base, "rewarded", "method=dprlhf", *ALIGNMENT, *overrides)


def _run(base: Path, name: str, *overrides: str) -> Path:
    directory = base / f"{name}-{hashlib.sha256(repr(overrides).encode()).hexdigest()[:12]}"
    if not (directory / "summary.json").is_file():
        model = f"model.model={language_model_of(base)}"
        with pytest.MonkeyPatch.context() as patch:
            use_cache(base, patch)
            start([*overrides, model, f"output={directory}"])
    return directory
