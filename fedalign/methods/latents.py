"""What a federation's latents look like: their use by the model, and a last phase that collects them for plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedalign.contribution import Contribution, State, total
from fedalign.data.pairs import Judgments, PairShard, Role
from fedalign.methods.base import Artefacts, Memory, Needs, Participation, ServerOptimizer
from fedalign.methods.pairs import PairPhase, Predictor
from fedalign.metrics.latent import active_units_of_sums, cluster_agreement, linear_probe, silhouette
from fedalign.metrics.record import MetricSum, encode
from fedalign.rng import Streams
from fedalign.template import Template

if TYPE_CHECKING:
    from fedalign.methods.selector import SelectorPhase

LATENT = "latent/"
GROUP_MEAN = "group_mean/"
ACTIVE = 0.01
"""A latent dimension is in use when its posterior means vary over people by more than this (Burda et al. 2016)."""


class LatentsPhase(PairPhase):
    """One round in which everybody reports its posterior mean, so that latents can be seen and switched.

    A diagnosis: the model is not changed. The server sees each person's latent and group.
    """

    name = "latents"
    rounds = 1
    needs = Needs.INDIVIDUAL
    participation = Participation.ALL
    diagnostic = True

    def __init__(self, selector: SelectorPhase) -> None:
        self.selector, self.evaluation = selector, selector.evaluation

    def initial(self, streams: Streams, artefacts: Artefacts) -> State:
        """Return the trained selector."""
        return dict(artefacts[self.selector.name])

    def check_reply(self, state: State, contribution: Contribution) -> None:
        """Refuse anything but latents by group and person."""
        length = self.selector.prior_mean(state).shape[0]
        Template().check_open(contribution, {LATENT: (length,)})
        for name in contribution.tensors:
            if "/" not in name.removeprefix(LATENT):
                raise ValueError(f"{name[:80]}: names no group")

    def local(self, state: State, shard: PairShard, streams: Streams, memory: Memory) -> Contribution:
        """Return the posterior mean of each of the client's people, from all that they would show a predictor."""
        self.selector.load(state)
        tensors = {}
        with torch.inference_mode():
            for judgments in shard.people:
                mean, _ = self.selector.posterior(judgments, judgments.train[: self.evaluation.context])
                tensors[f"{LATENT}{judgments.group}/{judgments.person}"] = mean[0].clone()
        return Contribution(tensors)

    def update_each(self, state: State, replies: Sequence[Contribution], optimizer: ServerOptimizer) -> State:
        """Return the selector, all latents, and the mean latent of each group."""
        found = {name: t.float() for name, t in total(replies).tensors.items() if name.startswith(LATENT)}
        groups = sorted({group_of(name) for name in found})
        means = {
            f"{GROUP_MEAN}{group}": torch.stack([t for name, t in found.items() if group_of(name) == group]).mean(0)
            for group in groups
        }
        return {**state, **found, **means}

    def load(self, state: State) -> None:
        """Put the selector into its workspace."""
        self.selector.load(state)

    def predictors(
        self, state: State, shard: PairShard, judgments: Judgments, context: Tensor, streams: Streams
    ) -> Mapping[str, Predictor]:
        """Return the selector's predictions, with another group's latent now that it is known."""
        return self.selector.predictors(state, shard, judgments, context, streams)

    def evaluate(self, state: State, shard: PairShard, streams: Streams) -> Contribution:
        """Return what the selector reports, and once: how the collected latents lie."""
        scored = self.selector.evaluate(state, shard, streams)
        latents = {name: t for name, t in state.items() if name.startswith(LATENT)}
        first = sorted(name.removeprefix(LATENT) for name in latents)[:1]
        mine = [f"{judgments.group}/{judgments.person}" for judgments in shard.people]
        # One person's client says it for all, since every client sees the same table.
        if first and first[0] in mine:
            return scored + Contribution(scalars=encode(_structure(latents)))
        return scored

    def summarise(self, sums: Sequence[MetricSum], tensors: Mapping[str, Tensor]) -> dict[str, float]:
        """Return what the selector reports."""
        return self.selector.summarise(sums, tensors)


def opposed(state: State, group: str) -> Tensor | None:
    """Return the mean latent of the group that is farthest from ``group``, shape (d,); None if unknown."""
    means = {name.removeprefix(GROUP_MEAN): t for name, t in state.items() if name.startswith(GROUP_MEAN)}
    own = means.pop(group, None)
    if own is None or not means:
        return None
    return max(means.values(), key=lambda mean: float((mean - own).square().sum()))


def moments(selector: SelectorPhase, state: State, shard: PairShard, streams: Streams) -> Contribution:
    """Return sums over training people of posterior means and their squares, and of the KL by group.

    The workspace must hold the state.
    """
    sums: list[MetricSum] = []
    means = []
    generator = Streams(streams.seed).torch("evaluation/kl")
    for judgments in shard.people:
        mean, log_variance = selector.posterior(judgments, judgments.train[: selector.evaluation.context])
        components = selector.method.prior.components(state, judgments.person)
        kl = selector.method.divergence.value(mean, log_variance, components, None, generator)
        population = "unseen" if shard.role is Role.UNSEEN else "test"
        sums.append(MetricSum(f"{population}/kl", judgments.group, float(kl.sum()), 1.0))
        means.append(mean[0].double())
    if shard.role is Role.UNSEEN:
        return Contribution(scalars=encode(sums))
    table = torch.stack(means)
    tensors = {
        "moments/n": torch.tensor([float(len(table))]).double(),
        "moments/sum": table.sum(0),
        "moments/square": table.square().sum(0),
    }
    return Contribution(tensors, encode(sums))


def activity(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the number of active units, from the sums of :meth:`moments`."""
    if "moments/n" not in tensors:
        return {}
    count = float(tensors["moments/n"])
    active = active_units_of_sums(tensors["moments/sum"], tensors["moments/square"], count, ACTIVE)
    return {"test/active_units": float(active)}


def group_of(name: str) -> str:
    """Return the group in a latent's name ``latent/<group>/<person>``."""
    return name.removeprefix(LATENT).partition("/")[0]


def _structure(latents: Mapping[str, Tensor]) -> list[MetricSum]:
    """Return how well latents tell the groups apart: linear probe, silhouette, and agreement of clusters."""
    names = sorted(latents)
    means, groups = torch.stack([latents[name] for name in names]), [group_of(name) for name in names]
    values = {
        "linear_probe": linear_probe(means, groups),
        "silhouette": silhouette(means, groups),
        "cluster_agreement": cluster_agreement(means, groups, len(set(groups)), seed=0),
    }
    return [MetricSum(f"latent/{name}", "all", value, 1.0) for name, value in values.items() if value is not None]
