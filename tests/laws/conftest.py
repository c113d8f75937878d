"""A tiny world for the laws: seconds a run, and small enough to be checked by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from fedalign.contribution import State
from fedalign.run import start
from fedalign.run_end import Result

from .guarded_world import reward, world  # noqa: F401 - fixtures

TINY = (
    "data.groups=6",
    "data.questions=50",
    "data.world_seed=7",
    "partition.unseen=2",
    "partition.min_questions=8",
    "encoder.size=32",
    "model.width=16",
    "model.layers=1",
    "model.heads=2",
    "method.local.steps=2",
    "method.episode.min_questions=3",
    "method.episode.max_questions=8",
    "method.evaluation.draws=1",
    "method.evaluation.context_questions=5",
    "federation.rounds=5",
    "federation.evaluate_every=5",
    "federation.checkpoint_every=2",
)

PAIRS = (
    "data.annotators=8",
    "data.train_judgments=10",
    "data.test_judgments=3",
    "data.world_seed=7",
    "partition.unseen=2",
    "encoder.size=32",
    "model.body.width=8",
    "model.width=8",
    "method.local.steps=2",
    "method.episodes.count=2",
    "method.episodes.min_context=2",
    "method.episodes.max_context=5",
    "method.episodes.targets=3",
    "method.evaluation.context=5",
    "method.evaluation.draws=1",
    "federation.rounds=5",
    "federation.evaluate_every=5",
    "federation.checkpoint_every=2",
)
"""Overrides of methods that train on pairs."""

SELECTOR = (
    *PAIRS,
    "method=fedvpa",
    "federation/sampler=fraction",
    "model.latent=4",
    "method.prototypes.warmup=0",
    "method.divergence.annealing.schedule=constant",
)
"""Overrides of the variational methods; a later ``method=`` chooses another of them."""

Runner = Callable[..., Result]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDALIGN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def run(tmp_path: Path) -> Runner:
    """Run the tiny world under more overrides, in a directory of the given name."""

    def runner(name: str, *overrides: str) -> Result:
        baseline = "method=uniform" in overrides or "method=question_mean" in overrides
        known = [o for o in TINY if not (baseline and o.startswith(("method.local", "method.episode")))]
        return start([*known, *overrides, f"output={tmp_path / name}"])

    return runner


@pytest.fixture
def run_pairs(tmp_path: Path) -> Runner:
    """Run the tiny world of pairs under more overrides, in a directory of the given name."""

    def runner(name: str, *overrides: str) -> Result:
        return start([*selector_overrides(*overrides), f"output={tmp_path / name}"])

    return runner


def selector_overrides(*overrides: str) -> list[str]:
    """Return the overrides of a tiny variational run, without those of prototypes where it has none."""
    bare = {"method=fedvpl", "method=fedvpl_evidence", "method.prototypes=null"} & set(overrides)
    return [*(o for o in SELECTOR if not (bare and "prototypes" in o)), *overrides]


_WITHOUT_INFLUENCE = ("attention.key_value.bias", "head.2.bias")


def final_state(result: Result, phase: str = "gpo") -> State:
    """Return the final state of a run's phase."""
    return load_file(result.directory / "model" / f"{phase}.safetensors")


def felt(state: State) -> State:
    """Return the tensors of a survey network that predictions depend on: a softmax cancels two biases.

    Their true gradient is zero, and Adam makes steps of up to full size out of the rounding in it.
    """
    return {name: tensor for name, tensor in state.items() if not name.endswith(_WITHOUT_INFLUENCE)}


def residuals(one: State, other: State) -> tuple[float, float]:
    """Return the largest absolute and the absolute mean difference over all tensors."""
    assert one.keys() == other.keys()
    differences = [(one[name].double() - other[name].double()).flatten() for name in one]
    largest = max(float(d.abs().max()) for d in differences if d.numel())
    count = sum(d.numel() for d in differences)
    return largest, abs(sum(float(d.sum()) for d in differences) / count)
