"""The round before EM: k-means on annotators' signatures, by sums alone."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedalign.contribution import Contribution, State
from fedalign.data.federated import Role
from fedalign.data.rankings import RankingShard
from fedalign.methods.base import Artefacts, Memory, Participation, Phase, ServerOptimizer
from fedalign.methods.ranking_folds import Folds
from fedalign.methods.type_start import ClusteredStart
from fedalign.metrics.record import MetricSum, encode
from fedalign.metrics.types import assignment_metrics, assignment_sums
from fedalign.rng import Streams
from fedalign.template import Template

if TYPE_CHECKING:
    from fedalign.methods.type_model import TypeModel

CENTRES = "centres"
"""Name of the clusters' centres, float64 of shape (K, D)."""

_TRIED = "tried"
_MOMENT, _SUM, _COUNT, _SPREAD = "start/moment", "start/sum", "start/count", "start/spread"


class Signatures:
    """The signatures of a shard's annotators, worked out once.

    Parameters
    ----------
    start : ClusteredStart
    model : TypeModel
    folds : Folds
        Judgments held out for validation are no part of a signature.
    """

    def __init__(self, start: ClusteredStart, model: TypeModel, folds: Folds) -> None:
        self.start, self._model, self._folds = start, model, folds
        self._base: tuple[int, State] | None = None
        self._known: weakref.WeakKeyDictionary[RankingShard, Tensor] = weakref.WeakKeyDictionary()

    def of(self, shard: RankingShard, seed: int) -> Tensor:
        """Return the signatures, float64 of shape (P, D)."""
        if self._base is None or self._base[0] != seed:
            self._base = seed, self._model.fresh(Streams(seed, "start"))
            self._known.clear()
        if shard not in self._known:
            self._known[shard] = self._signatures(self._base[1], shard, seed)
        return self._known[shard]

    def _signatures(self, base: State, shard: RankingShard, seed: int) -> Tensor:
        return self.start.signatures(self._model, base, shard, self._folds.telling(shard, seed), seed)

    def clusters(self, state: Mapping[str, Tensor], shard: RankingShard, seed: int) -> Tensor:
        """Return the nearest of the state's centres to each annotator, int64 of shape (P,)."""
        return distances(self.of(shard, seed), state[CENTRES].double()).argmin(1)


class StartPhase(Phase[RankingShard]):
    """Federated k-means with several beginnings side by side.

    The first round adds up first and second moments of the signatures; each further one is an iteration of all
    beginnings; the last leaves the centres of the one with the least spread.
    """

    name = "start"
    participation = Participation.ALL
    evaluated = frozenset({Role.TRAIN})
    bounded_metrics: frozenset[str] = frozenset()

    def __init__(self, signatures: Signatures, types: int) -> None:
        self._signatures, self._types = signatures, types
        self._settings = signatures.start
        self.rounds = self._settings.iterations + 1

    def check(self, shard: RankingShard) -> None:
        """Refuse a training client that has no signatures."""
        if shard.role is Role.TRAIN:
            self._settings.check(shard)

    def users(self, shard: RankingShard) -> Sequence[str]:
        """Return the shard's annotators."""
        return shard.people

    def initial(self, streams: Streams, artefacts: Artefacts) -> State:
        """Return centres at 0, and what later draws come from."""
        size = (self._settings.restarts, self._types, self._settings.dimensions)
        return {
            _TRIED: torch.zeros(size, dtype=torch.float64),
            CENTRES: torch.zeros(size[1:], dtype=torch.float64),
            "round": torch.tensor(0),
            "seed": torch.tensor(streams.integer("centres")),
        }

    def template(self, state: State) -> Template:
        """Return the sums: moments, and of every beginning each cluster's sum and size, and the spread."""
        restarts, types, length = state[_TRIED].shape
        return Template(
            {
                _MOMENT: (length + 1, length + 1),
                _SUM: (restarts, types, length),
                _COUNT: (restarts, types),
                _SPREAD: (restarts,),
            }
        )

    def local(self, state: State, shard: RankingShard, streams: Streams, memory: Memory) -> Contribution:
        """Return the client's annotators' moments, or their sums by cluster."""
        points = self._signatures.of(shard, streams.seed)
        if int(state["round"]) == 0:
            extended = torch.cat([torch.ones(len(points), 1, dtype=torch.float64), points], 1)
            return Contribution({_MOMENT: extended.T @ extended})
        sums, counts, spreads = [], [], []
        for centres in state[_TRIED].double():
            apart = distances(points, centres)
            nearest = torch.nn.functional.one_hot(apart.argmin(1), len(centres)).double()
            sums.append(nearest.T @ points)
            counts.append(nearest.sum(0))
            spreads.append(apart.min(1).values.sum())
        return Contribution({_SUM: torch.stack(sums), _COUNT: torch.stack(counts), _SPREAD: torch.stack(spreads)})

    def update(self, state: State, total: Contribution, optimizer: ServerOptimizer) -> State:
        """Return the next centres."""
        number = int(state["round"])
        after = {**state, "round": torch.tensor(number + 1)}
        if number == 0:
            generator = Streams(int(state["seed"])).torch("centres")
            return {**after, _TRIED: first_centres(total.tensors[_MOMENT].double(), state[_TRIED].shape, generator)}
        counts = total.tensors[_COUNT].double()[..., None]
        # A cluster that nobody is in stays where it is.
        moved = torch.where(counts > 0.5, total.tensors[_SUM].double() / counts.clamp(min=0.5), state[_TRIED])
        best = int(total.tensors[_SPREAD].argmin())
        return {**after, _TRIED: moved, CENTRES: moved[best]}

    def evaluate(self, state: State, shard: RankingShard, streams: Streams) -> Contribution:
        """Return how far annotators are from their centres, and what tells how far the clusters are the true types."""
        apart = distances(self._signatures.of(shard, streams.seed), state[CENTRES].double())
        shares = torch.nn.functional.one_hot(apart.argmin(1), self._types).T.double()
        spread = MetricSum("test/spread", "all", float(apart.min(1).values.sum()), float(len(apart)))
        return Contribution(assignment_sums(shares, shard.types), encode([spread]))

    def summarise(self, sums: Sequence[MetricSum], tensors: Mapping[str, Tensor]) -> dict[str, float]:
        """Return how far the clusters are the true types."""
        found = assignment_metrics(tensors)
        told = {f"test/{name}": found[name] for name in ("type_accuracy", "largest_type_share") if name in found}
        return {**super().summarise(sums, tensors), **told}


def first_centres(moment: Tensor, size: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return centres drawn from the normal distribution of points, in its K directions of largest variance.

    Parameters
    ----------
    moment : float64 Tensor, shape (D + 1, D + 1)
        Sum of the outer products of (1, point) with itself.
    size : (R, K, D)
    generator : torch.Generator

    Returns
    -------
    float64 Tensor, shape (R, K, D)
    """
    count = moment[0, 0].clamp(min=1)
    mean = moment[0, 1:] / count
    covariance = moment[1:, 1:] / count - mean[:, None] * mean[None, :]
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    kept = min(size[1], len(values))
    spread, directions = values[-kept:].clamp(min=0).sqrt(), vectors[:, -kept:]
    drawn = torch.randn(size[0], size[1], kept, generator=generator, dtype=torch.float64)
    centres: Tensor = mean + (drawn * spread) @ directions.T
    return centres


def distances(points: Tensor, centres: Tensor) -> Tensor:
    """Return squared distances, shape (P, K)."""
    apart: Tensor = (points[:, None, :] - centres[None]).square().sum(-1)
    return apart
