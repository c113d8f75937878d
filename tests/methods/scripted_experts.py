"""Experts that say what a script has, place by place, and a phase that merges them; no network but its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedalign.methods.base import Setting
from fedalign.methods.control_learning import Learning, Offline, Online
from fedalign.methods.control_phase import Controlled, ControlPhase
from fedalign.methods.coverage import Coverage
from fedalign.methods.expert_source import ExpertSource
from fedalign.methods.policy_gradient import PPO, Algorithm, GroupGradient, Rebel
from fedalign.methods.preference_weighting import Even
from fedalign.models.control import ControlSpec
from fedalign.models.control_constant import ConstantSpec
from fedalign.models.control_transformer import TransformerSpec
from fedalign.models.experts import Experts, Pairs
from fedalign.models.mixing import Linear
from fedalign.models.text import TextCodec
from tests.language_models import LENGTH, WORDS

from .stated import LENGTHS, local, method, setting

Script = Mapping[str, Sequence[str]]
"""What each expert says at the first place of a response, the second and so on, over and over; words share a place."""

BANDIT: Script = {"praise": ["good plot"], "blame": ["the"], "moving": ["plot it"], "still": ["good it"]}
"""Of the two experts that a combination wants, one serves a side better, and the other no worse."""
RIGHT = {"praise, moving": "praise", "praise, still": "still", "blame, moving": "moving", "blame, still": "blame"}
"""Which that is."""
TURNS: Script = {"praise": ["good", "dull"], "blame": ["the"], "moving": ["bad", "plot"], "still": ["it"]}
"""Two experts that are right in turn: one praises at even places, the other tells events at odd ones."""


def table_of(script: Script, sure: float = 0.9) -> Tensor:
    """Return log-probabilities, (n, period, V): so much is on what the script has, and the rest on all words."""
    period = max(len(places) for places in script.values())
    found = torch.full((len(script), period, len(WORDS)), (1 - sure) / len(WORDS))
    for expert, places in enumerate(script.values()):
        for place in range(period):
            words = places[place % len(places)].split()
            for word in words:
                found[expert, place, WORDS.index(word)] += sure / len(words)
    return found.log()


class ScriptedExperts(Experts):
    """Experts whose distributions depend on the place in the response alone; counts how often it is asked."""

    device, vocabulary, end_tokens, pad_token, max_tokens = torch.device("cpu"), len(WORDS), (0,), 1, LENGTH  # type: ignore[assignment]

    def __init__(self, names: Sequence[str], table: Tensor) -> None:
        self.names, self.table, self.calls = tuple(names), table, 0

    def advance(
        self,
        pairs: Pairs,
        input_ids: Tensor,
        attention_mask: Tensor,
        cache: Any,
        keep_cache: bool = True,
        last_only: bool = False,
    ) -> tuple[Tensor, Any]:
        self.calls += 1
        width, new = attention_mask.shape[1], input_ids.shape[1]
        # What follows a column is a place further, and responses begin after the columns of prompts.
        places = torch.arange(width - new, width) + 1 - LENGTHS.prompt
        places = places[-1:] if last_only else places
        return self.table[pairs.expert][:, places % self.table.shape[1]], None


@dataclass(frozen=True)
class Scripted(ExpertSource):
    """Where scripted experts come from."""

    script: Script
    sure: float = 0.9

    def open(self, names: Sequence[str], setting: Setting) -> ScriptedExperts:
        assert tuple(names) == tuple(self.script)
        return ScriptedExperts(names, table_of(self.script, self.sure))

    def codec(self, setting: Setting) -> TextCodec:
        return TextCodec(setting.model.model, "model")  # type: ignore[attr-defined]


def transformer(**changes: Any) -> TransformerSpec:
    """Return settings of a control model that reads."""
    sizes: dict[str, Any] = {"hidden": 16, "layers": 1, "heads": 2, "intermediate": 24, "max_tokens": LENGTH}
    return TransformerSpec(**{"pretrained": None, "preference": "vector", **sizes, **changes})


def algorithm(name: str = "rebel", **changes: Any) -> Algorithm:
    """Return an algorithm by name."""
    steps = {"epochs": changes.pop("epochs", 1), "minibatches": changes.pop("minibatches", 1)}
    if name == "rebel":
        return Rebel(**steps, **{"eta": 5.0, **changes})
    if name == "ppo":
        own = {"clip": 0.2, "gamma": 1.0, "lam": 0.95, "value_clip": None, "value_weight": 0.5, "place": "last"}
        return PPO(**steps, **{**own, "whiten": False, **changes})
    return GroupGradient(**steps, **{"clip": 0.2, "completions": 4, "baseline": name, **changes})


def online(name: str = "rebel", share: float = 0.0, beta: float = 0.0, **changes: Any) -> Online:
    """Return online learning, by default of the clients' own preferences alone."""
    return Online(algorithm(name, **changes), beta, 1.0, Coverage(share, None, None))


def controlled(
    learning: Learning | None = None,
    control: ControlSpec | None = None,
    steps: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Controlled:
    """Return settings of a control model, by default of constant weights that learn from judgments."""
    values: dict[str, Any] = {"rounds": None, "batch": 8, "control": control or ConstantSpec(8), "mixing": Linear()}
    values |= {"learning": learning or Offline(0.5), "weighting": Even(), "personal_bias": False}
    return Controlled(**{**values, "local": local(**(steps or {})), **changes})


def control_phase(
    folder: Path, settings: Controlled, experts: ExpertSource | None = None, **changes: Any
) -> ControlPhase:
    """Return the phase that trains the control model, by default over the bandit's experts."""
    *_, found = method(experts or Scripted(BANDIT), settings, **changes).phases(setting(folder))
    assert isinstance(found, ControlPhase)
    return found
