"""Federated EM-DPO: clients tell their annotators' types from some judgments and train the types on others.

Chidambaram et al. (arXiv 2405.15065) in rounds. The server keeps K sets of parameters and the share of annotators of
each type. A client sends what is meant to be added: each type's change times the weight that the client's judgments
have in it, these weights, the sum of its annotators' posteriors, and how likely it found judgments that were not
trained on in that round. Under secure sums nobody sees one client's; without them the server can read from a device's
sums what type its owner is of.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedalign.contribution import DELTA, WEIGHT, Contribution, State
from fedalign.data.federated import Role
from fedalign.data.rankings import RankingShard
from fedalign.methods.base import Artefacts, Memory, ServerOptimizer, Setting
from fedalign.methods.collapse import ALARMS, RESTARTS, no_alarms
from fedalign.methods.local_training import train
from fedalign.methods.memory_part import MemoryPart
from fedalign.methods.ranking_phase import RankingPhase
from fedalign.methods.start_phase import CENTRES, Signatures, StartPhase
from fedalign.methods.type_assignment import Evidence, cluster_shares
from fedalign.methods.type_model import PRIOR, TYPES, TypeModel, named, type_of
from fedalign.metrics.record import MetricSum, encode
from fedalign.objectives.em import effective_types, mixture_log_likelihood, per_annotator
from fedalign.objectives.plackett_luce import ranking_log_likelihood
from fedalign.rng import Streams
from fedalign.template import Template

if TYPE_CHECKING:
    from fedalign.methods.emdpo import EMDPO

MASS, SHARES = "em/mass", "em/shares"
"""Names of sums: what judgments weigh in each type (N_k), and posteriors of annotators (G_k), each of shape (K,)."""

_ROUND, _SEED = "em/round", "em/seed"
_LATE = 1 << 30
"""A round in which nothing is tempered any more, however long that takes."""


class EMPhase(RankingPhase):
    """Federated EM over K types.

    Parameters
    ----------
    method : EMDPO
    setting : Setting
    model : TypeModel
    signatures : Signatures or None
        Where clusters say who is of which type at first.
    """

    name = "em"

    def __init__(self, method: EMDPO, setting: Setting, model: TypeModel, signatures: Signatures | None) -> None:
        super().__init__(method, model)
        self.rounds = setting.rounds
        self.client_weight = 1.0 if method.weight == "uniform" else None
        self._signatures = signatures
        self._clustered = 0
        if signatures is not None:
            self._clustered = setting.rounds if method.assignment.needs_clusters else signatures.start.rounds

    def check(self, shard: RankingShard) -> None:
        """Refuse responses that types cannot read, and annotators with too few judgments to be divided."""
        self.model.check(shard)
        self.method.folds.check(shard)
        self.method.assignment.check_people(shard.types)

    def initial(self, streams: Streams, artefacts: Artefacts) -> State:
        """Return the types where they begin, equal shares, and the clusters of the start."""
        number = self.method.types
        state = self.method.start.types(self.model, number, streams)
        state |= {PRIOR: torch.full((number,), 1 / number), **no_alarms()}
        state |= {_ROUND: torch.tensor(0), _SEED: torch.tensor(streams.integer("server"))}
        if self._signatures is not None:
            # Without artefacts it is only asked what would be added up.
            nowhere = {CENTRES: torch.zeros(number, self._signatures.start.dimensions, dtype=torch.float64)}
            state[CENTRES] = artefacts.get(StartPhase.name, nowhere)[CENTRES]
        return state

    def template(self, state: State) -> Template:
        """Return a delta for every type's every parameter, and the two sums over types."""
        types = {name: tensor for name, tensor in state.items() if name.startswith(TYPES)}
        number = self.method.types
        return Template.of_deltas(types) | Template({MASS: (number,), SHARES: (number,)})

    def local(self, state: State, shard: RankingShard, streams: Streams, memory: Memory) -> Contribution:
        """Tell the annotators' types, train the types that they take part in, and return sums."""
        method = self.method
        told = method.folds.assessing(shard, streams.seed, streams.round)
        fitted = method.folds.fitting(shard, streams.seed, streams.round)
        shares, held = self._assess(state, shard, told, streams)
        weights = self._weights(state, shard, fitted, shares)
        weight = 1.0 if method.weight == "uniform" else float(len(fitted))
        mass = weight * weights.mean(1)
        tensors: State = {MASS: torch.zeros_like(mass), SHARES: shares.sum(1)}
        losses = []
        for number in mass.argsort(descending=True, stable=True)[: method.top].tolist():
            if float(mass[number]) > method.least_share * weight:
                before = type_of(state, number)
                losses.append(self._train(before, shard, fitted, weights[number], number, streams, memory))
                change = {name: (after - before[name]) for name, after in self.model.trained().items()}
                tensors |= {DELTA + k: t * float(mass[number]) for k, t in named(change, number).items()}
                tensors[MASS][number] = mass[number]
        metrics = [MetricSum("train/loss", "all", sum(losses), float(len(losses))), *held]
        return Contribution(tensors, {WEIGHT: weight, **encode(metrics)})

    def update(self, state: State, total: Contribution, optimizer: ServerOptimizer) -> State:
        """Return the state after a round: each type moves along the mean of those who trained it."""
        mass = total.tensors[MASS].double()
        mean = {}
        for name, value in total.tensors.items():
            if name.startswith(DELTA):
                number = int(name.removeprefix(DELTA).split(".")[1])
                # A type that nobody trained stays where it is, also where sums have a place for everything.
                if float(mass[number]) <= 0:
                    continue
                # Not by less than this: a type that hardly anybody has would follow the noise on its few.
                mean[name.removeprefix(DELTA)] = value.double() / mass[number].clamp(min=self.method.least_mass)
        told = total.tensors[SHARES].double().clamp(min=0)
        rate, prior = self.method.prior_rate, state[PRIOR]
        if float(told.sum()) > 0:
            prior = (1 - rate) * prior + rate * (told / told.sum()).to(prior)
        number = int(state[_ROUND]) + 1
        after = {**optimizer.step(state, mean), PRIOR: prior, _ROUND: torch.tensor(number)}
        return self.method.collapse.watch(after, Streams(int(state[_SEED]), round=number))

    def report(self, state: State) -> Mapping[str, float]:
        """Return how the types share the annotators."""
        prior = state[PRIOR]
        return {
            "train/effective_types": effective_types(prior),
            "train/largest_prior": float(prior.max()),
            "train/collapse_alarms": float(state[ALARMS]),
            "train/collapse_restarts": float(state[RESTARTS]),
        }

    def shares_of(self, state: State, shard: RankingShard, index: Tensor, seed: int) -> Tensor:
        """Return every annotator's share in each type as the method tells it once trained, float64 of shape (K, P).

        Whom the clusters of the start were not made for is told by its judgments all the same.
        """
        assignment = self.method.assignment
        if assignment.needs_clusters and shard.role is Role.UNSEEN:
            return self.posteriors(state, shard, index)
        found = self.log_likelihoods(state, shard, index) if assignment.reads_likelihood else None
        return self._shares(state, shard, index, found, self._clustered + _LATE, seed, assignment.needs_clusters)

    def _assess(
        self, state: State, shard: RankingShard, told: Tensor, streams: Streams
    ) -> tuple[Tensor, list[MetricSum]]:
        """Return the annotators' shares, float32 of shape (K, P), and how likely the judgments are that tell them."""
        if not self.method.assignment.reads_likelihood and self.method.types == 1:
            return torch.ones(1, len(shard.people)), []
        found = self.log_likelihoods(state, shard, told) if self.method.assignment.reads_likelihood else None
        by_cluster = streams.round <= self._clustered
        shares = self._shares(state, shard, told, found, streams.round, streams.seed, by_cluster)
        if found is None or not self.method.folds.cross_fit:
            return shares.float(), []
        # Under the prior alone, as of annotators of whom nothing is known.
        owner = shard.owner[told]
        likely = mixture_log_likelihood(per_annotator(found, owner, len(shard.people)), state[PRIOR].log())
        return shares.float(), [
            MetricSum("train/log_likelihood_assessed", "all", float(likely.sum()), float(len(told)))
        ]

    def _shares(
        self,
        state: State,
        shard: RankingShard,
        index: Tensor,
        log_likelihood: Tensor | None,
        round_number: int,
        seed: int,
        by_cluster: bool,
    ) -> Tensor:
        clusters = None
        if by_cluster and self._signatures is not None:
            clusters = self._signatures.clusters(state, shard, seed)
        if log_likelihood is None:
            index, log_likelihood = index[:0], torch.zeros(self.method.types, 0)
        prior, owner = state[PRIOR].log(), shard.owner[index]
        evidence = Evidence(log_likelihood, owner, prior, round_number - self._clustered, clusters, shard.types)
        shares = cluster_shares(evidence) if clusters is not None else self.method.assignment.annotators(evidence)
        return shares.double()

    def _weights(self, state: State, shard: RankingShard, fitted: Tensor, shares: Tensor) -> Tensor:
        """Return what each judgment that is trained on weighs in each type, float32 of shape (K, n)."""
        if not self.method.assignment.per_judgment:
            return shares[:, shard.owner[fitted]]
        found = self.log_likelihoods(state, shard, fitted)
        return self.method.assignment.judgments(found, shard.owner[fitted], len(shard.people)).float()

    def _train(
        self,
        before: State,
        shard: RankingShard,
        fitted: Tensor,
        weights: Tensor,
        number: int,
        streams: Streams,
        memory: Memory,
    ) -> float:
        """Train the workspace network from a type's parameters on weighted judgments; return the mean loss."""
        method, own = self.method, MemoryPart(memory, f"type {number}/")
        generator = streams.torch(f"batches/{number}")

        def loss(step: int) -> Tensor:
            if method.batch is None or method.batch >= len(fitted):
                drawn, weighed = fitted, weights / weights.sum()
            else:
                place = torch.multinomial(weights, method.batch, replacement=True, generator=generator)
                drawn, weighed = fitted[place], torch.full((method.batch,), 1 / method.batch)
            found = self.model.utilities(shard, drawn)
            value = -ranking_log_likelihood(found.values, self.orders(shard).rows(drawn))
            if found.likelihood is not None and method.likelihood:
                value = value - method.likelihood * found.likelihood
            return (value * weighed).sum()

        steps = (method.local.steps * (streams.round - 1), method.local.steps * self.rounds)
        with streams.torch_default(f"dropout/{number}"):
            self.model.network.train()
            mean = train(self.model.network, before, loss, method.local, *steps, own)
        self.model.network.eval()
        return mean
