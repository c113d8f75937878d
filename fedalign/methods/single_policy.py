"""One policy in place of the mixture of types: what such phases share, and the log-linear merge of types."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedalign.contribution import Contribution, State
from fedalign.data.rankings import RankingShard
from fedalign.methods.base import Artefacts, Memory
from fedalign.methods.judged_regret import judged_regrets, others, regret_summary
from fedalign.methods.log_linear import LogLinearPolicy
from fedalign.methods.mmra import MIXTURE, MixturePhase
from fedalign.methods.ranking_phase import RankingPhase
from fedalign.methods.text_policies import TextPolicy
from fedalign.methods.type_adapters import AdapterTypes
from fedalign.methods.type_model import all_utilities
from fedalign.methods.type_rewards import gains
from fedalign.metrics.record import MetricSum, encode
from fedalign.rng import Streams


class SinglePhase(RankingPhase):
    """A phase whose state holds the types, their mixture, and one policy that stands for it.

    Parameters
    ----------
    mixture : MixturePhase
        What the policy is to stand for; an earlier phase.
    """

    name = "single"
    diagnostic = True

    def __init__(self, mixture: MixturePhase) -> None:
        super().__init__(mixture.method, mixture.model)
        self.mixture = mixture

    @abstractmethod
    def utilities(self, state: State, shard: RankingShard, index: Tensor) -> Tensor:
        """Return what the policy finds of responses, shape (n, S), as types do."""

    @abstractmethod
    def policy(self, state: State) -> TextPolicy:
        """Return what writes; only where types are adapters of a language model."""

    def mixed(self, streams: Streams, artefacts: Artefacts) -> State:
        """Return the types and their mixture; as they begin, where only names and shapes are asked for."""
        found = artefacts.get(self.mixture.name)
        return self.mixture.initial(streams, artefacts) if found is None else found

    def shares_of(self, state: State, shard: RankingShard, index: Tensor, seed: int) -> Tensor:
        """Return every annotator's share in each type as EM tells it, float64 of shape (K, P)."""
        return self.mixture.shares_of(state, shard, index, seed)

    @torch.no_grad()
    def evaluate(self, state: State, shard: RankingShard, streams: Streams) -> Contribution:
        """Return how types predict held-out judgments, and what the policy loses there, by annotators' types."""
        known, target = self.divided(shard, streams.seed)
        own = self.shares_of(state, shard, known, streams.seed).argmax(0)
        best = self.mixture.gains(state, shard, target)
        found = gains(self.utilities(state, shard, target), self.orders(shard).rows(target))
        sums = judged_regrets(shard, target, own, best, found)
        return super().evaluate(state, shard, streams) + Contribution(scalars=encode(sums))

    def summarise(self, sums: Sequence[MetricSum], tensors: Mapping[str, Tensor]) -> dict[str, float]:
        """Return what is told of types, and the policy's regret: a judgment's mean, and the worst type's."""
        return super().summarise(others(sums), tensors) | regret_summary(sums)


@dataclass(frozen=True)
class Single(ABC):
    """Which one policy stands for the mixture; the ``single`` block of the method."""

    @abstractmethod
    def phases(self, mixture: MixturePhase) -> Sequence[SinglePhase]:
        """Return the phase that makes it, to follow the mixture's; none where the mixture itself is to serve.

        Raises
        ------
        UserError
            If types are not of a kind that it can be made of.
        """


@dataclass(frozen=True)
class NoSingle(Single):
    """The mixture itself serves: for every text a type is drawn."""

    def phases(self, mixture: MixturePhase) -> list[SinglePhase]:
        """Return no phase."""
        return []


class LogLinearPhase(SinglePhase):
    """Only evaluates: the merge is a function of the types and their weights."""

    rounds = 0

    def initial(self, streams: Streams, artefacts: Artefacts) -> State:
        """Return the types and their mixture."""
        return self.mixed(streams, artefacts)

    def local(self, state: State, shard: RankingShard, streams: Streams, memory: Memory) -> Contribution:
        """Refuse: there are no rounds."""
        raise TypeError(f"phase {self.name} has no rounds")

    def utilities(self, state: State, shard: RankingShard, index: Tensor) -> Tensor:
        """Return the weighted sum of what types find, shape (n, S).

        That of the merge of whole responses, ``ref * prod_k (pi_k / ref)^w_k``: a menu's normaliser is the same for all
        its responses. Over menus of frozen vectors the merge is exactly the softmax of this.
        """
        found = all_utilities(self.model, state, shard, index)
        return torch.einsum("k,kns->ns", state[MIXTURE].to(found), found)

    def policy(self, state: State) -> LogLinearPolicy:
        """Return the merge that writes token by token."""
        assert isinstance(self.model, AdapterTypes)
        return LogLinearPolicy(self.model, state, state[MIXTURE])


@dataclass(frozen=True)
class LogLinear(Single):
    """The log-linear merge of types under the mixture's weights: no training, a pass a token for every type."""

    def phases(self, mixture: MixturePhase) -> list[LogLinearPhase]:
        """Return a phase without rounds."""
        return [LogLinearPhase(mixture)]
