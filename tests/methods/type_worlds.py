"""Small worlds of types: shards of rankings, types that are heads or adapters, and an EM that knows who is who."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from fedalign.contribution import State
from fedalign.data.rankings import RankingShard, Role
from fedalign.methods.fairness import Fairness, MinMaxRegret
from fedalign.methods.mmra import MixturePhase
from fedalign.methods.ranking_folds import Folds
from fedalign.methods.ranking_phase import RankingEvaluation
from fedalign.methods.text_lengths import Lengths
from fedalign.methods.text_policies import Writing
from fedalign.methods.type_adapters import AdapterTypes
from fedalign.methods.type_heads import HeadTypes
from fedalign.methods.type_model import PRIOR, TypeModel, named
from fedalign.models.language_model import LanguageModelSpec
from fedalign.models.utility import LinearUtility
from fedalign.rng import Streams

WRITING = Writing(samples=1, max_new_tokens=6, temperature=1.0, batch=16)
PROMPTS = ("the film was", "I liked", "a plot", "bad actor and", "dull", "very bright ending")


def shard(
    features: Tensor,
    tiers: Tensor,
    owner: list[int],
    types: tuple[str | None, ...],
    client: str = "c",
    test: int = 0,
    role: Role = Role.TRAIN,
) -> RankingShard:
    """Return a client whose last ``test`` judgments are held out; a negative tier is an absent response."""
    count = len(tiers)
    responses = [[f"{'good' if r else 'bad'} film {'it ' * r}" for r in range(int((row >= 0).sum()))] for row in tiers]
    return RankingShard(
        client=client,
        role=role,
        people=tuple(f"{client}/{p}" for p in range(len(types))),
        types=types,
        owner=torch.tensor(owner),
        prompts=tuple(PROMPTS[i % len(PROMPTS)] for i in range(count)),
        responses=tuple(tuple(each) for each in responses),
        groups=("all",) * count,
        features=features,
        tiers=tiers,
        train=torch.arange(count - test),
        test=torch.arange(count - test, count),
        probe=torch.zeros(len(types), 0, 2, dtype=torch.int64),
    )


def random_shard(
    seed: int, count: int, size: int = 3, features: int = 4, client: str = "c", test: int = 0
) -> RankingShard:
    """Return a client of two annotators, of types a and b, with random menus of 2 to ``size`` responses."""
    generator = torch.Generator().manual_seed(seed)
    tiers = torch.stack([torch.randperm(size, generator=generator) for _ in range(count)])
    short = torch.rand(count, generator=generator) < 0.4
    tiers[short, -1] = -1
    ranks = tiers.masked_fill(tiers < 0, size).argsort(1).argsort(1)
    tiers = ranks.masked_fill(tiers < 0, -1)
    vectors = torch.randn(count, size, features, generator=generator)
    return shard(vectors, tiers, [i % 2 for i in range(count)], ("a", "b"), client, test)


def heads(*weights: list[float]) -> tuple[HeadTypes, State]:
    """Return linear types with these weights, and their state with equal shares."""
    model = HeadTypes(LinearUtility(init_std=1.0), len(weights[0]))
    state: State = {PRIOR: torch.full((len(weights),), 1 / len(weights))}
    for number, each in enumerate(weights):
        state |= named({"score.weight": torch.tensor([each])}, number)
    return model, state


def adapters(folder: Path, types: int, scale: float = 0.3, beta: float = 0.5) -> tuple[AdapterTypes, State]:
    """Return types that are random adapters on a folder's model, and their state with equal shares."""
    spec = LanguageModelSpec(
        model=str(folder),
        rank=4,
        alpha=8.0,
        dropout=0.0,
        target_modules=None,
        freeze_a=False,
        dtype="float32",
        device="cpu",
    )
    model = AdapterTypes(spec, beta, Lengths(prompt=8, response=6))
    state: State = {PRIOR: torch.full((types,), 1 / types)}
    for number in range(types):
        generator = torch.Generator().manual_seed(number)
        fresh = model.fresh(Streams(number))
        moved = {k: t + scale * torch.randn(t.shape, generator=generator) for k, t in fresh.items()}
        state |= named(moved, number)
    return model, state


class KnownEM:
    """Stands for EM where it is known who is of which type: a, b, ... are types 0, 1, ..."""

    name = "em"

    def __init__(self, model: TypeModel, types: int) -> None:
        self.model, self._types = model, types

    def initial(self, streams: Streams, artefacts: Mapping[str, State]) -> State:
        """Return types as they are before EM."""
        state: State = {PRIOR: torch.full((self._types,), 1 / self._types)}
        for number in range(self._types):
            state |= named(self.model.fresh(streams), number)
        return state

    def shares_of(self, state: State, shard: RankingShard, index: Tensor, seed: int) -> Tensor:
        """Return one-hot columns."""
        numbers = torch.tensor([ord(str(name)) - ord("a") for name in shard.types])
        return torch.nn.functional.one_hot(numbers, self._types).T.double()


def fair(cls: type[Fairness] = MinMaxRegret, **changes: Any) -> Fairness:
    """Return settings of a mixture."""
    values: dict[str, Any] = {"basis": "answers", "prompts": None, "client_prompts": 100, "writing": WRITING}
    if cls is MinMaxRegret:
        values |= {"weights": None, "normalise": False}
    return cls(**{**values, **changes})


def mixture_phase(
    model: TypeModel, types: int, settings: Fairness, weight: str = "uniform", validation: float = 0.5
) -> MixturePhase:
    """Return the phase of a method that knows its annotators' types."""
    method: Any = SimpleNamespace(
        types=types,
        weight=weight,
        folds=Folds(cross_fit=False, assess=None, validation=validation),
        evaluation=RankingEvaluation(known=None, context=5, judgments=None),
    )
    em: Any = KnownEM(model, types)
    return settings.phases(method, em)[0]
