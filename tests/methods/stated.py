"""PCM on a random language model: its method from few words, clients who state preferences, and known measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedalign.contribution import Contribution, State, total
from fedalign.data.corpus import CorpusShard, Example
from fedalign.data.encoders.hashing import HashingEncoder
from fedalign.data.federated import Role
from fedalign.federation.server_optimizer import FedAvg
from fedalign.methods.base import Memory, Phase, Setting
from fedalign.methods.expert_loss import ExpertLoss, Imitation
from fedalign.methods.expert_source import ExpertSource
from fedalign.methods.expert_training import TrainedExperts
from fedalign.methods.local_training import LocalTraining
from fedalign.methods.merging import Merging
from fedalign.methods.pcm import PCM
from fedalign.methods.stated_evaluation import StatedEvaluation
from fedalign.methods.stated_preference import Dimension
from fedalign.methods.text_lengths import Lengths
from fedalign.models.language_model import LanguageModelSpec
from fedalign.rng import Streams

from .stages import Counts

SIDES = ("praise", "blame", "moving", "still")
LENGTHS = Lengths(prompt=4, response=5)
PROMPTS = ("the film", "it was", "a plot", "actor and", "the ending was very", "I liked the film and")
TEXTS: Mapping[str, Sequence[str]] = {
    "praise": (" was good", " fine and bright"),
    "blame": (" was bad and dull", " dull"),
    "moving": (" plot and actor and plot", " actor and ending"),
    "still": (" it", " it it"),
}
"""What texts of a side are like."""


class NoMerging(Merging):
    """Merges nothing, where experts alone are looked at."""

    def phases(self, method: PCM, setting: Setting) -> Sequence[Phase[Any]]:
        return ()


def dimensions(measured: bool = True) -> dict[str, Dimension]:
    """Return two dimensions over the words that the random models know."""
    words = {"tone": "good fine bright", "topic": "plot actor ending"}
    return {
        name: Dimension(sides, Counts(words[name]) if measured else None, 1.0)
        for name, sides in (("tone", SIDES[:2]), ("topic", SIDES[2:]))
    }


def local(**changes: Any) -> LocalTraining:
    """Return settings of local training."""
    values: dict[str, Any] = {"steps": 2, "optimizer": "sgd", "lr": 0.05, "schedule": "constant", "period": 3}
    values |= {"final_lr": 0.1, "optimizer_state": "reset", "proximal_mu": 0.0, "max_grad_norm": None}
    return LocalTraining(**{**values, **changes})


def trained(loss: ExpertLoss | None = None, steps: Mapping[str, Any] | None = None, **changes: Any) -> TrainedExperts:
    """Return experts that are trained."""
    values: dict[str, Any] = {"rounds": 3, "batch": 2, "loss": loss or Imitation(), "least_mass": 0.5}
    return TrainedExperts(**{**values, "local": local(**(steps or {})), **changes})


def method(experts: ExpertSource | None = None, merging: Merging | None = None, **changes: Any) -> PCM:
    """Return a method; by default experts are trained and nothing merges them."""
    values: dict[str, Any] = {
        "name": "pcm",
        "lengths": LENGTHS,
        "dimensions": dimensions(),
        "experts": experts or trained(),
        "top_tokens": None,
        "floor": 1e-6,
        "merging": merging or NoMerging(),
        "evaluation": StatedEvaluation(prompts=64, batch=3, temperature=1.0),
    }
    return PCM(**{**values, **changes})


def setting(folder: Path, **changes: Any) -> Setting:
    """Return the facts of a run on a folder's model."""
    values: dict[str, Any] = {"rank": 2, "alpha": 4.0, "dropout": 0.0, "target_modules": None, "freeze_a": False}
    spec = LanguageModelSpec(model=str(folder), dtype="float32", device="cpu", **{**values, **changes})
    return Setting(4, 0, spec, HashingEncoder("{option}", 8, False))


def demonstrations(*sides: str, count: int = 4, user: str = "ann", rejected: bool = False) -> tuple[Example, ...]:
    """Return texts that have one of some sides, in turn; with a rejected one, that is of another side."""
    found = []
    for i in range(count):
        side = sides[i % len(sides)]
        other = SIDES[(SIDES.index(side) + 1) % len(SIDES)]
        texts, worse = TEXTS[side], TEXTS[other][i % 2] if rejected else None
        found.append(Example(user, side, PROMPTS[i % len(PROMPTS)], texts[(i // len(sides)) % 2], worse, "train"))
    return tuple(found)


def wishes(*statements: str, count: int = 4, user: str = "ann") -> tuple[Example, ...]:
    """Return comparisons under some preferences, in turn."""
    return tuple(
        Example(user, statements[i % len(statements)], PROMPTS[i % len(PROMPTS)], " good plot", " dull", "train")
        for i in range(count)
    )


def client(
    *examples: Example, name: str = "ann", stage: str = "sft", test: Sequence[Example] = (), **stages: Sequence[Example]
) -> CorpusShard:
    """Return a client that holds examples of a stage, and of others by their name."""
    held = tuple(replace(each, split="test") for each in test)
    own = {stage: tuple(examples), **{key: tuple(each) for key, each in stages.items()}}
    return CorpusShard(name, Role.TRAIN, {key: each for key, each in own.items() if each}, held)


def contributions(phase: Phase[CorpusShard], state: State, *clients: CorpusShard, number: int = 1) -> Contribution:
    """Return the total of a round."""
    each = [phase.local(state, own, Streams(3, phase.name, number, own.client), dict[str, Any]()) for own in clients]
    template = phase.template(phase.broadcast(state))
    assert template is not None
    for one in each:
        template.check(one)
    return total(each)


def rounds(phase: Phase[CorpusShard], state: State, *clients: CorpusShard, count: int = 1) -> State:
    """Return the state after some rounds in which all clients take part."""
    optimizer = FedAvg(1.0).build()
    memories: dict[str, Memory] = {own.client: {} for own in clients}
    for number in range(1, count + 1):
        each = [
            phase.local(state, own, Streams(3, phase.name, number, own.client), memories[own.client]) for own in clients
        ]
        state = phase.update(state, total(each), optimizer)
    return state
