"""What phases over rankings share: likelihoods of judgments by type, and predictions of held-out judgments."""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedalign.contribution import Contribution, State
from fedalign.data.federated import Role
from fedalign.data.rankings import RankingShard
from fedalign.methods.base import Phase
from fedalign.methods.ranking_folds import first_of_each
from fedalign.methods.type_model import PRIOR, TypeModel, all_utilities
from fedalign.metrics.record import MetricSum, encode
from fedalign.metrics.types import assignment_metrics, assignment_sums
from fedalign.objectives.em import mixture_log_likelihood, per_annotator, responsibilities_of
from fedalign.objectives.plackett_luce import Orders, concordance, margins, orders_of, ranking_log_likelihood
from fedalign.rng import Streams

if TYPE_CHECKING:
    from fedalign.methods.emdpo import EMDPO

ACCURACY = "accuracy"
LIKELIHOOD = "log_likelihood"


@dataclass(frozen=True)
class RankingEvaluation:
    """How types are scored; the ``evaluation`` block of the method.

    Parameters
    ----------
    known : int or None
        Judgments that tell a training annotator's type, at most, out of those it trains on; None takes all.
    context : int
        Judgments that tell an unseen annotator's type, at most.
    judgments : int or None
        Held-out judgments of an annotator that are predicted, at most; None takes all.
    """

    known: Annotated[int, Field(ge=1)] | None
    context: Annotated[int, Field(ge=0)]
    judgments: Annotated[int, Field(ge=1)] | None


class RankingPhase(Phase[RankingShard]):
    """A phase whose state holds types.

    Parameters
    ----------
    method : EMDPO
    model : TypeModel
    """

    bounded_metrics = frozenset({f"test/{ACCURACY}", f"unseen/{ACCURACY}"})

    def __init__(self, method: EMDPO, model: TypeModel) -> None:
        self.method, self.model = method, model
        self._orders: weakref.WeakKeyDictionary[RankingShard, Orders] = weakref.WeakKeyDictionary()

    def users(self, shard: RankingShard) -> Sequence[str]:
        """Return the shard's annotators."""
        return shard.people

    @abstractmethod
    def shares_of(self, state: State, shard: RankingShard, index: Tensor, seed: int) -> Tensor:
        """Return every annotator's share in each type, from judgments at ``index``, float64 of shape (K, P)."""

    def posteriors(self, state: State, shard: RankingShard, index: Tensor) -> Tensor:
        """Return every annotator's posterior from judgments at ``index``, float64 of shape (K, P).

        It is the prior where none of them is the annotator's.
        """
        found = per_annotator(self.log_likelihoods(state, shard, index), shard.owner[index], len(shard.people))
        return responsibilities_of(found, state[PRIOR].log(), 1.0)

    def log_likelihoods(self, state: Mapping[str, Tensor], shard: RankingShard, index: Tensor) -> Tensor:
        """Return the log-likelihood of judgments at ``index`` under every type, shape (K, n), without gradients."""
        return ranking_log_likelihood(all_utilities(self.model, state, shard, index), self.orders(shard).rows(index))

    def orders(self, shard: RankingShard) -> Orders:
        """Return the orders that agree with a shard's judgments; worked out once."""
        if shard not in self._orders:
            self._orders[shard] = orders_of(shard.tiers)
        return self._orders[shard]

    @torch.no_grad()
    def evaluate(self, state: State, shard: RankingShard, streams: Streams) -> Contribution:
        """Return how held-out judgments are predicted, by true type where it is known, and who is of which type."""
        population = "unseen" if shard.role is Role.UNSEEN else "test"
        known, target = self.divided(shard, streams.seed)
        shares = self.shares_of(state, shard, known, streams.seed)
        sums = self._scores(state, shard, target, shares, population)
        if shard.role is Role.TRAIN:
            held = self.method.folds.validating(shard, streams.seed)
            sums += [s for s in self._scores(state, shard, held, shares, "train") if s.name == f"train/{LIKELIHOOD}"]
        tensors = {f"{population}/{name}": t for name, t in assignment_sums(shares, shard.types).items()}
        return Contribution(tensors, encode(sums))

    def divided(self, shard: RankingShard, seed: int) -> tuple[Tensor, Tensor]:
        """Return the judgments that tell types in an evaluation, and those that are predicted, int64."""
        settings, generator = (
            self.method.evaluation,
            Streams(seed, "evaluation", client=shard.client).torch("judgments"),
        )
        unseen = shard.role is Role.UNSEEN
        known = shard.train if unseen else self.method.folds.telling(shard, seed)
        most = settings.context if unseen else settings.known
        told = known if most is None else first_of_each(shard, known, generator, lambda _: most)
        limit = settings.judgments
        return told, shard.test if limit is None else first_of_each(shard, shard.test, generator, lambda _: limit)

    def summarise(self, sums: Sequence[MetricSum], tensors: Mapping[str, Tensor]) -> dict[str, float]:
        """Return means over groups, the worst group's accuracy, and how far learnt types are the true ones."""
        values = super().summarise(sums, tensors)
        for population in ("test", "unseen"):
            scored = [item.total / item.n for item in sums if item.name == f"{population}/{ACCURACY}"]
            if scored:
                values[f"{population}/{ACCURACY}_worst"] = min(scored)
            prefix = f"{population}/"
            own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            values |= {prefix + name: value for name, value in assignment_metrics(own).items()} if own else {}
        return values

    def _scores(
        self, state: State, shard: RankingShard, index: Tensor, shares: Tensor, population: str
    ) -> list[MetricSum]:
        """Return sums of how judgments at ``index`` are predicted, for annotators with these shares, by group."""
        if not len(index):
            return []
        owner, orders = shard.owner[index], self.orders(shard).rows(index)
        found = all_utilities(self.model, state, shard, index)
        likely = mixture_log_likelihood(ranking_log_likelihood(found, orders), shares.log()[:, owner])
        chance = ranking_log_likelihood(torch.zeros_like(found[0]), orders)
        # Everybody is predicted by the likeliest type alone, as it would be served.
        own = found[shares.argmax(0)[owner], torch.arange(len(index))]
        correct, strict = concordance(own, shard.tiers[index])
        apart = margins(own, shard.tiers[index])
        ones = torch.ones(len(index))
        groups = [
            shard.types[person] or shard.groups[row] for person, row in zip(owner.tolist(), index.tolist(), strict=True)
        ]
        scores = {
            ACCURACY: (correct, strict),
            "margin": (apart, ones),
            LIKELIHOOD: (likely, ones),
            f"{LIKELIHOOD}_chance": (chance, ones),
        }
        return [
            item for name, (total, n) in scores.items() for item in _by_group(f"{population}/{name}", groups, total, n)
        ]


def _by_group(name: str, groups: Sequence[str], total: Tensor, n: Tensor) -> Iterator[MetricSum]:
    for group in sorted(set(groups)):
        own = torch.tensor([g == group for g in groups])
        yield MetricSum(name, group, float(total[own].double().sum()), float(n[own].sum()))
