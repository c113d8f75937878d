"""The smallest federation that trains a selector and then a language model."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedalign.run import start
from tests.language_models import random_model
from tests.tiny import use_cache

PAIRS = (
    "encoder=hashing",
    "encoder.size=32",
    "data.annotators=6",
    "data.train_judgments=10",
    "data.test_judgments=3",
    "partition.unseen=2",
    "model.latent=2",
    "model.width=8",
    "model.body.width=8",
    "method.local.steps=2",
    "method.episodes.max_context=5",
    "method.evaluation.context=5",
)
"""Overrides of any experiment with pairs; chosen after it."""

POLICY = (
    "experiment=fedvpa_policy",
    *PAIRS,
    "federation.rounds=1",
    "federation.sampler.size=2",
    "method.policy.policy.rank=2",
    "method.policy.rounds=1",
    "method.policy.prompts=2",
    "method.policy.completions=3",
    "method.policy.max_prompt_tokens=8",
    "method.policy.max_new_tokens=6",
    "method.policy.batch=4",
    "method.policy.local.steps=2",
    "method.policy.evaluation.clients=1.0",
    "method.policy.evaluation.prompts=2",
)
"""Overrides that need a model besides: ``method.policy.policy.model``."""


def language_model_of(base: Path) -> Path:
    """Return the folder of a random model; written at the first call in a test session."""
    folder = base / "random-gpt2"
    return folder if folder.is_dir() else random_model("gpt2", folder)


def policy_run(base: Path, *overrides: str) -> Path:
    """Return the directory of a finished run with a policy; trains at the first call in a test session.

    Tests must not change it: copy it first.
    """
    directory = base / ("policy-" + "-".join(o.replace("=", "_") for o in overrides)).rstrip("-")
    if not (directory / "summary.json").is_file():
        model = f"method.policy.policy.model={language_model_of(base)}"
        with pytest.MonkeyPatch.context() as patch:
            use_cache(base, patch)
            start([*POLICY, model, *overrides, f"output={directory}"])
    return directory
