"""Types of annotators on small shards: rankings drawn by hand, phases from a short configuration, and rounds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fedalign.config import RunConfig
from fedalign.contribution import Contribution, State, total
from fedalign.data.federated import Role
from fedalign.data.rankings import RankingShard
from fedalign.federation.server_optimizer import FedAvg, ServerOptimizerSpec
from fedalign.methods.base import Memory, Phase, Setting
from fedalign.methods.em import EMPhase
from fedalign.methods.emdpo import EMDPO
from fedalign.methods.start_phase import StartPhase
from fedalign.methods.type_adapters import AdapterTypes
from fedalign.methods.type_model import TypeModel
from fedalign.metrics.record import decode
from fedalign.rng import Streams
from tests.configs import configured

FEATURES = 3
TYPES = {"a": torch.tensor([2.0, 0.0, 0.5]), "b": torch.tensor([-2.0, 1.0, 0.5])}
"""What true types find of a feature."""

SMALL = (
    "model=linear_utility",
    "method/fair=none",
    "method.types=2",
    "method.batch=null",
    "method.folds.assess=null",
    "method.folds.validation=0",
    "method.local.steps=1",
    "method.local.lr=0.5",
    "method.local.schedule=constant",
    "method.local.max_grad_norm=null",
    "method.collapse.action=warn",
    "method.evaluation.known=null",
    "method.evaluation.judgments=null",
)
RANDOM = ("method/start=random", "method.start.scale=1.0")
PROBE = ("method.start.iterations=3", "method.start.restarts=2", "method.start.rounds=2", "method.start.dimensions=6")
WORDS = ("the film", "good fine", "bad dull plot", "it was very bright", "actor", "I liked the ending and the plot")


def settings(*overrides: str) -> RunConfig:
    """Return the small configuration of a method, ``emdpo`` unless told, which starts at random unless told."""
    arm = next((o for o in overrides if o.startswith("method=")), None)
    start = () if arm or any(o.startswith("method/start") for o in overrides) else RANDOM
    small = [o for o in SMALL if arm is None or not o.startswith("method.types")]
    return configured(arm or "method=emdpo", *small, *start, *overrides)


def phases(*overrides: str, rounds: int = 4, private: bool = False) -> list[Phase[RankingShard]]:
    """Return fresh phases."""
    config = settings(*overrides)
    found = config.method.phases(Setting(rounds, FEATURES, config.model, config.encoder, private=private))
    return list(found)


def em(*overrides: str, rounds: int = 4) -> EMPhase:
    """Return a fresh phase of EM that needs no other before it, unless the start is among the overrides."""
    (found,) = (phase for phase in phases(*overrides, rounds=rounds) if isinstance(phase, EMPhase))
    return found


def starting(*overrides: str, rounds: int = 4) -> tuple[StartPhase, EMPhase]:
    """Return the phases of a clustered start."""
    start, after, *_ = phases("method/start=probe", *PROBE, *overrides, rounds=rounds)
    assert isinstance(start, StartPhase)
    assert isinstance(after, EMPhase)
    return start, after


def adapters(folder: Path, *overrides: str, rounds: int = 4) -> tuple[EMPhase, AdapterTypes]:
    """Return a phase of EM whose types are adapters on the model of a folder."""
    small = ("model=gpt2_lora", f"model.model={folder}", "model.rank=2", "model.alpha=4")
    phase = em(*small, "method.lengths.prompt=4", "method.lengths.response=8", *overrides, rounds=rounds)
    assert isinstance(phase.model, AdapterTypes)
    return phase, phase.model


def method_of(phase: EMPhase) -> EMDPO:
    """Return a phase's method."""
    return phase.method


def shard(
    client: str = "ann",
    people: Sequence[str] = ("ann",),
    types: Sequence[str | None] = ("a",),
    judgments: int = 8,
    test: int = 3,
    responses: int = 3,
    menus: int = 2,
    role: Role = Role.TRAIN,
) -> RankingShard:
    """Return the judgments of some annotators, each drawn by name, so that who else is on the client changes nothing.

    The test judgments of each are its last.
    """
    parts = [
        _judged(name, kind or "a", judgments + test, responses, menus) for name, kind in zip(people, types, strict=True)
    ]
    each = judgments + test
    owner = torch.arange(len(people)).repeat_interleave(each)
    train = (torch.arange(len(owner)) % each) < judgments
    texts = [_texts(name, each, responses) for name in people]
    return RankingShard(
        client=client,
        role=role,
        people=tuple(people),
        types=tuple(types),
        owner=owner,
        prompts=tuple(prompt for own in texts for prompt, _ in own),
        responses=tuple(menu for own in texts for _, menu in own),
        groups=tuple("all" for _ in owner),
        features=torch.cat([features for features, _, _ in parts]),
        tiers=torch.cat([tiers for _, tiers, _ in parts]),
        train=train.nonzero()[:, 0],
        test=(~train).nonzero()[:, 0],
        probe=torch.stack([probe for _, _, probe in parts]),
    )


def world(people: int = 6, judgments: int = 8, responses: int = 3, menus: int = 2) -> list[RankingShard]:
    """Return one client for each annotator, of two types in turn."""
    names = [f"p{number}" for number in range(people)]
    kinds = [["a", "b"][number % 2] for number in range(people)]
    return [
        shard(name, (name,), (kind,), judgments, responses=responses, menus=menus)
        for name, kind in zip(names, kinds, strict=True)
    ]


def silo(people: int = 6, judgments: int = 8, client: str = "silo") -> RankingShard:
    """Return the same annotators on one client."""
    return shard(client, [f"p{n}" for n in range(people)], [["a", "b"][n % 2] for n in range(people)], judgments)


class Rounds:
    """A phase's rounds on all of some clients, without an engine."""

    def __init__(
        self,
        phase: Phase[RankingShard],
        server: ServerOptimizerSpec | None = None,
        seed: int = 0,
        artefacts: dict[str, State] | None = None,
    ) -> None:
        self.phase, self.seed = phase, seed
        self.memories: dict[str, Memory] = {}
        self.state = phase.initial(Streams(seed, phase.name), artefacts or {})
        self.optimizer = (server or FedAvg(1.0)).build()

    def reply(self, number: int, client: RankingShard) -> Contribution:
        """Return one client's contribution to a round."""
        streams = Streams(self.seed, self.phase.name, number, client.client)
        return self.phase.local(self.state, client, streams, self.memories.setdefault(client.client, {}))

    def round(self, number: int, clients: Sequence[RankingShard]) -> list[Contribution]:
        """Run one round and return its contributions."""
        replies = [self.reply(number, each) for each in clients]
        self.state = self.phase.update(self.state, total(replies), self.optimizer)
        return replies

    def run(self, clients: Sequence[RankingShard]) -> State:
        """Run all rounds and return the final state."""
        for number in range(1, self.phase.rounds + 1):
            self.round(number, clients)
        return self.state


def clustered(clients: Sequence[RankingShard], *overrides: str, rounds: int = 4) -> tuple[Rounds, State]:
    """Run the start, and return EM before its first round and what the start left."""
    start, after = starting(*overrides, rounds=rounds)
    left = Rounds(start).run(clients)
    return Rounds(after, artefacts={start.name: left}), left


def scores(phase: Phase[RankingShard], state: State, clients: Sequence[RankingShard]) -> dict[str, float]:
    """Return what an evaluation on the clients amounts to."""
    summed = total(phase.evaluate(state, each, Streams(0, phase.name, 1, each.client)) for each in clients)
    return phase.summarise(decode(summed.scalars), summed.tensors)


def loaded_utilities(model: TypeModel, parameters: State, client: RankingShard, index: Tensor) -> Tensor:
    """Return what one type finds of judgments, shape (n, S), without gradients."""
    model.load(parameters)
    with torch.no_grad():
        return model.utilities(client, index).values


def same(one: State, other: State) -> bool:
    """Tell whether two states are bitwise the same."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _judged(name: str, kind: str, judgments: int, responses: int, menus: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return an annotator's features (n, S, D), tiers (n, S) and answers to the probe (menus, S)."""
    generator = Streams(3, "world", client=name).torch("judgments")
    features = torch.randn(judgments, responses, FEATURES, generator=generator)
    shared = torch.randn(menus, responses, FEATURES, generator=Streams(3, "world").torch("probe"))
    return features, _ranked(features @ TYPES[kind], generator), _ranked(shared @ TYPES[kind], generator)


def _ranked(utilities: Tensor, generator: torch.Generator) -> Tensor:
    """Return tiers of full orders drawn from the Plackett-Luce model."""
    gumbel = -torch.empty(utilities.shape).exponential_(generator=generator).log()
    return (utilities + gumbel).argsort(1, descending=True).argsort(1)


def _texts(name: str, judgments: int, responses: int) -> list[tuple[str, tuple[str, ...]]]:
    generator = Streams(3, "world", client=name).torch("texts")
    found = []
    for _ in range(judgments):
        prompt, *menu = (WORDS[place] for place in torch.randperm(len(WORDS), generator=generator)[: responses + 1])
        found.append((prompt, tuple(menu)))
    return found
