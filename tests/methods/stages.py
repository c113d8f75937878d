"""Stages of alignment on a random language model: phases from a short configuration, clients, and a known reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedalign.config import RunConfig
from fedalign.data.corpus import CorpusShard, Example
from fedalign.data.federated import Role
from fedalign.methods.base import Setting
from fedalign.methods.corpus import CorpusPhase
from fedalign.methods.dprlhf import DPRLHF
from fedalign.methods.text_reward import TextReward
from fedalign.privacy.local import DPSGD, GradSample, LocalPrivacy, Unit
from fedalign.privacy.noise import SeededNoise
from fedalign.rng import Streams
from tests.configs import configured

SMALL = (
    "lengths.prompt=4",
    "lengths.response=5",
    "sft.local.steps=2",
    "sft.batch=4",
    "sft.user_examples=2",
    "rl.local.steps=2",
    "rl.batch=4",
    "rl.user_examples=2",
    "rl.rounds=4",
)
PLACE = Streams(5, "rl", 1, "ann")


@dataclass(frozen=True)
class Counts(TextReward):
    """One for each word that is among some, which stand in one string."""

    name: ClassVar[str] = "counts"
    word: str = "the film was good fine liked"

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        return torch.tensor(
            [float(sum(word in self.word.split() for word in response.split())) for response in responses]
        )


def config(folder: Path, *overrides: str, arm: str = "dprlhf") -> RunConfig:
    """Return a small configuration of an arm."""
    small = [f"method.{each}" for each in SMALL]
    if arm == "dprlhf_preferences":
        small += ["method.reward_model.local.steps=2", "method.reward_model.batch=4"]
        small += ["method.reward_model.user_examples=2"]
    model = [f"model.model={folder}", "model.rank=2", "model.alpha=4"]
    return configured(f"method={arm}", *small, *model, *overrides)


def method_of(found: RunConfig, **changes: Any) -> DPRLHF:
    """Return the method with another reward, ``Counts`` where it has a given one, and other changes."""
    assert isinstance(found.method, DPRLHF)
    given = {} if found.method.reward is None else {"reward": Counts()}
    return replace(found.method, **{**given, **changes})


def phases(
    folder: Path,
    *overrides: str,
    arm: str = "dprlhf",
    local: LocalPrivacy | None = None,
    private: bool = False,
    **changes: Any,
) -> dict[str, CorpusPhase]:
    """Return fresh phases by name."""
    found = config(folder, *overrides, arm=arm)
    setting = Setting(4, 0, found.model, found.encoder, local_privacy=local, private=private or local is not None)
    made = method_of(found, **changes).phases(setting)
    assert all(isinstance(phase, CorpusPhase) for phase in made)
    return {phase.name: phase for phase in made}  # type: ignore[misc]


def privacy(unit: Unit = "example", grad_sample: GradSample = "hooks", clip: float = 1e6) -> LocalPrivacy:
    """Return DP-SGD in which all units take part in every step, without noise."""
    return LocalPrivacy(DPSGD(unit, clip, 1.0, grad_sample), 0.0, SeededNoise())


PROMPTS = ("the film", "I liked the plot and the", "it was", "actor", "", "the ending was very", "a film and a", "the")
RESPONSES = ("good", " was bad and dull", "very bright film", "fine plot and actor and ending and good film", "bad")


def examples(count: int, users: int = 3, pairs: bool = True) -> tuple[Example, ...]:
    """Return examples of some users in turn; the first prompt is among the short ones, the second is cut."""
    return tuple(
        Example(
            user=f"u{i % users}",
            group="x" if i % 2 else "y",
            prompt=PROMPTS[i % len(PROMPTS)],
            response=RESPONSES[i % len(RESPONSES)],
            rejected=RESPONSES[(i + 1) % len(RESPONSES)] if pairs else None,
            split="train",
        )
        for i in range(count)
    )


def shard(count: int = 6, test: int = 5) -> CorpusShard:
    """Return a client that serves every stage with the same examples."""
    own = examples(count)
    held = tuple(replace(each, split="test") for each in examples(test + 2)[2:])
    return CorpusShard("ann", Role.TRAIN, {"sft": own, "reward": own, "rl": own}, held)
