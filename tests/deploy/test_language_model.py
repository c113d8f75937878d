"""A phase that trains a language model, deployed: the same adapter as in process."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedalign.run import start
from tests.language_models import random_model
from tests.laws.conftest import residuals
from tests.tiny_alignment import ALIGNMENT

from .federation import deployed, state_of

pytestmark = [pytest.mark.deploy, pytest.mark.slow]

TOLERANCE = 1e-6


def test_fine_tuning_ends_with_the_state_of_a_run_in_process(tmp_path: Path) -> None:
    model = random_model("gpt2", tmp_path / "model")
    overrides = (
        "method=dprlhf", *ALIGNMENT, "federation.rounds=0", "method.sft.rounds=2",
        "federation.evaluate_every=9", "federation.checkpoint_every=9", f"model.model={model}",
    )  # fmt: skip
    with deployed(tmp_path, *overrides) as federation:
        code, told = federation.running.ask("run.sh")
        assert code == 0, told
    here = start([*overrides, f"output={tmp_path / 'here'}"])
    largest, mean = residuals(state_of(here.directory, "sft"), state_of(federation.run, "sft"))
    assert largest <= TOLERANCE
    assert mean <= TOLERANCE
