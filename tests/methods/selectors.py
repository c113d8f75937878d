"""The variational selector on small shards: phases from a short configuration, and rounds without an engine."""

from __future__ import annotations

from collections.abc import Sequence

from fedalign.config import RunConfig
from fedalign.contribution import Contribution, State, total
from fedalign.data.pairs import PairShard
from fedalign.federation.server_optimizer import FedAvg, ServerOptimizerSpec
from fedalign.methods.base import Memory, Needs, Phase, Setting
from fedalign.methods.fedvpa import FedVPA
from fedalign.methods.selector import SelectorPhase
from fedalign.metrics.record import decode
from fedalign.rng import Streams
from tests.configs import configured

from .judgments import FEATURES

LATENT = 4
SMALL = (
    "model.body.width=8",
    "model.body.dropout=0",
    "model.width=8",
    f"model.latent={LATENT}",
    "method.episodes.count=2",
    "method.episodes.min_context=2",
    "method.episodes.max_context=3",
    "method.episodes.targets=2",
    "method.evaluation.context=3",
    "method.evaluation.draws=1",
    "method.local.steps=2",
    "method.local.lr=0.05",
)
PROTOTYPES = ("method.prototypes.count=2", "method.prototypes.warmup=0")
ARMS = ("fedvpl", "fedvpa", "fedvpa_sums")
"""One for each kind of prior."""


def settings(*overrides: str) -> RunConfig:
    """Return the small configuration of a method, ``fedvpa`` unless told, under some overrides."""
    arm = next((o for o in overrides if o.startswith("method=")), "method=fedvpa")
    small = [o for o in SMALL if "latent" not in o] if arm == "method=fedavg_bt" else list(SMALL)
    if arm.startswith("method=fedvpa") and "method.prototypes=null" not in overrides:
        small += PROTOTYPES
    return configured(arm, *small, *overrides)


def method(*overrides: str) -> FedVPA:
    """Return the method's settings."""
    found = settings(*overrides).method
    assert isinstance(found, FedVPA)
    return found


def phases(*overrides: str, rounds: int = 4) -> Sequence[Phase[PairShard]]:
    """Return fresh phases."""
    config = settings(*overrides)
    return method(*overrides).phases(Setting(rounds, FEATURES, config.model, config.encoder))


def selector(*overrides: str, rounds: int = 4) -> SelectorPhase:
    """Return the first phase."""
    first = phases(*overrides, rounds=rounds)[0]
    assert isinstance(first, SelectorPhase)
    return first


class Federation:
    """A phase's rounds on all of some clients, without an engine."""

    def __init__(
        self,
        phase: Phase[PairShard],
        server: ServerOptimizerSpec | None = None,
        seed: int = 0,
        artefacts: dict[str, State] | None = None,
    ) -> None:
        self.phase, self.seed = phase, seed
        self.memories: dict[str, Memory] = {}
        self.state = phase.initial(Streams(seed, phase.name), artefacts or {})
        self.optimizer = (server or FedAvg(1.0)).build()

    def reply(self, number: int, shard: PairShard) -> Contribution:
        """Return one client's contribution to a round."""
        streams = Streams(self.seed, self.phase.name, number, shard.client)
        return self.phase.local(self.state, shard, streams, self.memories.setdefault(shard.client, {}))

    def round(self, number: int, shards: Sequence[PairShard]) -> list[Contribution]:
        """Run one round and return its contributions."""
        replies = [self.reply(number, each) for each in shards]
        if self.phase.needs is Needs.INDIVIDUAL:
            self.state = self.phase.update_each(self.state, replies, self.optimizer)
        else:
            self.state = self.phase.update(self.state, total(replies), self.optimizer)
        return replies

    def run(self, shards: Sequence[PairShard]) -> State:
        """Run all rounds and return the final state."""
        for number in range(1, self.phase.rounds + 1):
            self.round(number, shards)
        return self.state


def scores(phase: Phase[PairShard], state: State, shards: Sequence[PairShard]) -> dict[str, float]:
    """Return what an evaluation on the clients amounts to."""
    summed = total(phase.evaluate(state, each, Streams(0, phase.name, 1, each.client)) for each in shards)
    return phase.summarise(decode(summed.scalars), summed.tensors)
