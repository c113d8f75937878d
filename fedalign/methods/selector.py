"""Federated training of a variational selector: episodes on the client, a step and a prior on the server."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from fedalign.contribution import (
    Contribution,
    StackedContribution,
    State,
    mean_delta,
    total,
    weighted_delta,
)
from fedalign.data.pairs import Judgments, PairShard, Role
from fedalign.methods.base import Artefacts, Memory, ServerOptimizer, Setting
from fedalign.methods.divergence import LocalWeights
from fedalign.methods.episodes import Drawn
from fedalign.methods.latent_prior import BANK, Components, Posterior
from fedalign.methods.latents import activity, moments, opposed
from fedalign.methods.local_training import load_parameters, train, train_privately, trainable
from fedalign.methods.pairs import PairPhase, Predictor, batch_of
from fedalign.methods.selector_stack import SelectorStack
from fedalign.methods.selector_units import EachLatent, check_selector
from fedalign.metrics.record import MetricSum, encode
from fedalign.models.stacked import stackable
from fedalign.models.variational import VariationalReward, VariationalSpec
from fedalign.objectives.latent import aggregate_posterior
from fedalign.objectives.preference import preference_nll
from fedalign.privacy.local import LocalPrivacy, Unit
from fedalign.rng import Streams
from fedalign.template import Template

if TYPE_CHECKING:
    from fedalign.methods.fedvpa import FedVPA

_POSTERIOR_CONTEXTS = 8


class Workspace(nn.Module):
    """The network that states are loaded into, and the prototypes beside it."""

    stackable: ClassVar[bool] = True

    def __init__(self, reward: VariationalReward, prototypes: Tensor | None) -> None:
        super().__init__()
        self.reward = reward
        if prototypes is not None:
            self.prototypes = nn.Parameter(prototypes)


@dataclass(frozen=True)
class PersonView:
    """What a round's state says to one person."""

    judgments: Judgments
    components: Components | None
    weights: LocalWeights | None
    label: int | None


@dataclass(frozen=True)
class Drawing:
    """What one client draws for a training step.

    Parameters
    ----------
    drawn : Drawn
        E episodes.
    noise : float Tensor, shape (E, d)
        Of their latents.
    keep : float Tensor, shape (E, T), or None
        Where the part of a logit that does not see the latent is kept; None is everywhere.
    """

    drawn: Drawn
    noise: Tensor
    keep: Tensor | None


class SelectorPhase(PairPhase):
    """Federated training of the variational selector."""

    name = "selector"
    local_units: frozenset[Unit] = frozenset({"user"})

    def __init__(self, method: FedVPA, setting: Setting) -> None:
        assert isinstance(setting.model, VariationalSpec)
        check_selector(method, setting.local_privacy)
        self.rounds = setting.rounds
        self.local_steps = method.local.steps
        self.client_weight = 1.0 if method.weight == "uniform" else None
        self._privacy = setting.local_privacy
        self.needs = method.prior.needs
        self.method, self.evaluation = method, method.evaluation
        self._spec, self._features = setting.model, setting.features
        # The workspace that states are loaded into; its own weights mean nothing.
        self.network = self._build(Streams(0))

    def check(self, shard: PairShard) -> None:
        """Refuse a person with too few judgments, and one that trains but has no prototype."""
        super().check(shard)
        if self.method.prototypes is not None and shard.role is Role.TRAIN:
            for judgments in shard.people:
                self.method.prototypes.label({}, judgments)

    def initial(self, streams: Streams, artefacts: Artefacts) -> State:
        """Return freshly drawn weights and prototypes, which depend on the seed alone, and the prior's tensors."""
        fresh = self._build(Streams(streams.seed))
        state = {name: p.detach().cpu() for name, p in trainable(fresh).items()}
        return {**state, **self.method.prior.initial(self._spec.latent, streams)}

    def template(self, state: State) -> Template | None:
        """Return a delta for every trained tensor, and what the prior is told."""
        reports = self.method.prior.template(state)
        return None if reports is None else Template.of_deltas(trainable(self.network)) | reports

    def check_reply(self, state: State, contribution: Contribution) -> None:
        """Refuse anything but changes of what is trained, and posteriors by person."""
        posterior = {BANK: (1 + 2 * self._spec.latent,)}
        Template.of_deltas(trainable(self.network)).check_open(contribution, posterior, numbered=True)

    def local(self, state: State, shard: PairShard, streams: Streams, memory: Memory) -> Contribution:
        """Train on episodes of the shard's people, and report their posteriors to the prior."""
        if self._privacy is not None:
            return self._local_privately(state, shard, streams, memory, self._privacy)
        local = self.method.local
        views = self.views(state, shard, memory)
        generator = streams.torch("episodes")
        sums = {"reconstruction": 0.0, "kl": 0.0}

        def loss(step: int) -> Tensor:
            position = streams.round - 1 + step / local.steps
            reconstruction, kl, rest = self._losses(shard.people, views, position, generator)
            sums["reconstruction"] += float(reconstruction.detach()) / local.steps
            sums["kl"] += float(kl.detach()) / local.steps
            return reconstruction + self.kl_weight(position) * kl + rest

        own = [view.weights for view in views.values() if view.weights is not None]
        before = local.steps * (streams.round - 1)
        with streams.torch_default("dropout"):
            self.network.train()
            value = train(
                self.network, state, loss, local, before, local.steps * self.rounds, memory,
                personal=[weights.logits for weights in own],
            )  # fmt: skip
        for weights in own:
            weights.remember(memory)
        contribution = weighted_delta(*self._change(state), self.method.client_weight(shard))
        told = self.told(state, shard, {"loss": value, **sums}, generator)
        return Contribution({**contribution.tensors, **told.tensors}, {**contribution.scalars, **told.scalars})

    def stacked_size(self) -> int:
        """Return the selector's size; 0 with DP-SGD, which bounds the gradients of one client's units at a time."""
        if self._privacy is not None or not stackable(self.network):
            return 0
        return sum(parameter.numel() for parameter in self.network.parameters())

    def local_many(
        self, state: State, shards: Sequence[PairShard], streams: Sequence[Streams], memories: Sequence[Memory]
    ) -> StackedContribution:
        """Train every client on episodes of its own people."""
        return self._stack.local_many(state, shards, streams, memories)

    def update(self, state: State, total: Contribution, optimizer: ServerOptimizer) -> State:
        """Return the state after one server step, with the prior fitted to the sum of reports."""
        stepped = optimizer.step(state, mean_delta(total))
        updated = {**stepped, **self.method.prior.update(state, total)}
        return {**updated, **self._labels(updated)}

    def update_each(self, state: State, replies: Sequence[Contribution], optimizer: ServerOptimizer) -> State:
        """Return the state after one server step, with the prior made of single reports."""
        stepped = optimizer.step(state, mean_delta(total(replies)))
        updated = {**stepped, **self.method.prior.update_each(state, replies)}
        return {**updated, **self._labels(updated)}

    def load(self, state: State) -> None:
        """Put the state into the workspace network."""
        load_parameters(self.network, state)
        self.network.eval()

    def posterior(self, judgments: Judgments, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance, shape (1, d), of a person's latent given some of its judgments.

        The workspace must hold the state (:meth:`load`).

        Parameters
        ----------
        judgments : Judgments
        context : int64 Tensor, shape (C,)
        """
        batch = batch_of(judgments, context[None], None)
        return self.network.reward.posterior(batch.first, batch.second, batch.preferred)

    def prior_mean(self, state: State) -> Tensor:
        """Return the mean of the prior as a stranger sees it, shape (d,)."""
        components = self.method.prior.components(state, "")
        standard = components is None or self.method.divergence.form == "standard"
        return torch.zeros(self._spec.latent) if standard or components is None else components.mean

    def predictors(
        self, state: State, shard: PairShard, judgments: Judgments, context: Tensor, streams: Streams
    ) -> Mapping[str, Predictor]:
        """Return predictions with the person's own latent, the prior's mean, and an opposed group's latent."""
        mean, _ = self.posterior(judgments, context)
        latents = {"accuracy": mean, "accuracy_prior_z": self.prior_mean(state)[None]}
        other = opposed(state, judgments.group)
        if other is not None:
            latents["accuracy_swapped_z"] = other[None]
        return {name: self._predictor(z) for name, z in latents.items()}

    def evaluate(self, state: State, shard: PairShard, streams: Streams) -> Contribution:
        """Return accuracy sums, the KL of people's posteriors, and moments of their means."""
        scored = super().evaluate(state, shard, streams)
        with torch.inference_mode():
            latents = moments(self, state, shard, streams)
        return Contribution(latents.tensors, {**scored.scalars, **latents.scalars})

    def summarise(self, sums: Sequence[MetricSum], tensors: Mapping[str, Tensor]) -> dict[str, float]:
        """Return what pair predictors report, and the number of active units."""
        return {**super().summarise(sums, tensors), **activity(tensors)}

    def person_loss(self, state: State, judgments: Judgments, position: float, generator: torch.Generator) -> Tensor:
        """Return the loss of one person's episodes at the network's present weights, a scalar.

        Parameters
        ----------
        state : State
        judgments : Judgments
        position : float
            Rounds since the start.
        generator : torch.Generator
            Of the episodes and latents.
        """
        views = {judgments.person: self._view(state, judgments, {})}
        reconstruction, kl, rest = self._losses([judgments], views, position, generator)
        return reconstruction + self.kl_weight(position) * kl + rest

    def _local_privately(
        self, state: State, shard: PairShard, streams: Streams, memory: Memory, privacy: LocalPrivacy
    ) -> Contribution:
        """Return the change of the network by DP-SGD, at a weight that says nothing of the client, and no report."""
        draws = privacy.draws(streams)
        local, units = self.method.local, EachLatent(self, state, shard.people, draws)
        steps = (local.steps * (streams.round - 1), local.steps * self.rounds)
        with draws.torch_default("dropout"):
            self.network.train()
            train_privately(self.network, state, units, local, privacy, *steps, memory, streams)
        self.network.eval()
        return weighted_delta(*self._change(state), 1.0)

    def kl_weight(self, position: float) -> float:
        """Return the weight of the KL term, ``position`` rounds after the start."""
        return self.method.divergence.beta * self.method.divergence.annealing.factor(position)

    def _predictor(self, z: Tensor) -> Predictor:
        return lambda first, second: self.network.reward.odds(first, second, z)

    @functools.cached_property
    def _stack(self) -> SelectorStack:
        return SelectorStack(self)

    def _build(self, streams: Streams) -> Workspace:
        with streams.torch_default("selector/initial"):
            reward = self._spec.build(self._features)
        prototypes = self.method.prototypes
        return Workspace(reward, None if prototypes is None else prototypes.initial(self._spec.latent, streams))

    def views(self, state: State, shard: PairShard, memory: Memory) -> dict[str, PersonView]:
        """Return what a round's state says to each of a client's people."""
        return {judgments.person: self._view(state, judgments, memory) for judgments in shard.people}

    def _view(self, state: State, judgments: Judgments, memory: Memory) -> PersonView:
        """Collect what concerns one person; drops what depends on the prior while there is none."""
        components = self.method.prior.components(state, judgments.person)
        divergence, prototypes = self.method.divergence, self.method.prototypes
        learnt = components is not None and divergence.form != "standard" and divergence.weights == "gumbel"
        weights = LocalWeights(components, memory, judgments.person) if learnt and components is not None else None
        label = None if prototypes is None else prototypes.label(state, judgments)
        return PersonView(judgments, components, weights, label)

    def _losses(
        self, people: Sequence[Judgments], views: Mapping[str, PersonView], position: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return negative log-likelihood a target, KL a person, and the prototype loss, each a mean over episodes."""
        network = self.network.reward
        drawing = self.draw(people, generator)
        context, target = drawing.drawn.context, drawing.drawn.target
        mean, log_variance = network.posterior(context.first, context.second, context.preferred)
        z = mean + (0.5 * log_variance).exp() * drawing.noise
        logits = network.logits(target.first, target.second, z, drawing.keep)
        reconstruction = preference_nll(logits, target.preferred).mean()
        kl = self.kl(mean, log_variance, drawing.drawn, views, position, generator)
        prototypes = None if self.method.prototypes is None else self.network.prototypes
        return reconstruction, kl, self.pull(z, prototypes, drawing.drawn, views, position)

    def draw(self, people: Sequence[Judgments], generator: torch.Generator) -> Drawing:
        """Return what one client draws for a step before the network is asked."""
        drawn = self.method.episodes.draw(people, generator)
        noise = torch.randn(len(drawn.context.preferred), self._spec.latent, generator=generator)
        if not self._spec.base_dropout:
            return Drawing(drawn, noise, None)
        kept = torch.rand(drawn.target.preferred.shape, generator=generator) >= self._spec.base_dropout
        return Drawing(drawn, noise, kept.float())

    def kl(
        self,
        mean: Tensor,
        log_variance: Tensor,
        drawn: Drawn,
        views: Mapping[str, PersonView],
        position: float,
        generator: torch.Generator,
    ) -> Tensor:
        """Return one client's mean KL over its episodes."""
        temperature = self.method.divergence.temperature_at(min(1.0, position / max(1, self.rounds)))
        terms = []
        for person, rows in drawn.rows.items():
            view = views[person]
            log_weights = None if view.weights is None else view.weights.draw(temperature, generator)
            terms.append(
                self.method.divergence.value(
                    mean[rows], log_variance[rows], view.components, log_weights, generator
                ).sum()
            )
        return torch.stack(terms).sum() / len(mean)

    def pull(
        self, z: Tensor, prototypes: Tensor | None, drawn: Drawn, views: Mapping[str, PersonView], position: float
    ) -> Tensor:
        """Return one client's prototype loss; 0 where there are none."""
        if self.method.prototypes is None or prototypes is None:
            return torch.zeros(())
        labels = {person: (rows, views[person].label) for person, rows in drawn.rows.items()}
        return self.method.prototypes.loss(z, prototypes, labels, position)

    def told(
        self, state: State, shard: PairShard, values: Mapping[str, float], generator: torch.Generator
    ) -> Contribution:
        """Return what a client adds beside its change: reports of the workspace's posteriors, and metrics."""
        self.network.eval()
        prior = self.method.prior
        reports = {} if prior.silent else prior.report(state, self._posteriors(shard, generator))
        metrics = [
            MetricSum(f"train/{name}", judgments.group, amount, 1.0)
            for judgments in shard.people
            for name, amount in values.items()
        ]
        return Contribution(reports, encode(metrics))

    def _change(self, state: State) -> tuple[State, State]:
        """Return the trained tensors as they were broadcast, and as they are now."""
        after = {name: p.detach().cpu() for name, p in trainable(self.network).items()}
        return {name: state[name] for name in after}, after

    def _posteriors(self, shard: PairShard, generator: torch.Generator) -> dict[str, Posterior]:
        """Return each person's posterior over contexts of the size that training uses."""
        self.network.eval()
        found = {}
        with torch.inference_mode():
            for judgments in shard.people:
                drawn = self.method.episodes.contexts(judgments, _POSTERIOR_CONTEXTS, generator)
                means, log_variances = self.network.reward.posterior(drawn.first, drawn.second, drawn.preferred)
                found[judgments.person] = Posterior(*aggregate_posterior(means, log_variances), len(judgments.train))
        # Tensors of inference mode must not meet gradients in the next round.
        return {k: Posterior(p.mean.clone(), p.log_variance.clone(), p.judgments) for k, p in found.items()}

    def _labels(self, state: State) -> State:
        return {} if self.method.prototypes is None else self.method.prototypes.labels_of(state)
