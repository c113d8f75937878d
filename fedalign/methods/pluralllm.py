"""PluralLLM: a group-preference predictor (GPO) trained by federated averaging over groups (arXiv 2503.09925).

With ``prior: none`` this is the paper's method. With ``prior: federated`` a first round learns the federated
question prior, and the network learns how a group deviates from it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fedalign.contribution import Contribution, StackedContribution, State, stacked_delta, weighted_delta
from fedalign.data.schema import GroupJudgments, SurveyShard
from fedalign.errors import UserError
from fedalign.methods.base import Artefacts, Memory, Phase, Setting
from fedalign.methods.gpo_episodes import GPOEpisode, lay_out, stacked_losses
from fedalign.methods.local_training import (
    LocalTraining,
    check_equal_weight,
    check_private,
    load_parameters,
    train,
    train_privately,
)
from fedalign.methods.question_prior import Base, QuestionPriorPhase, base_of
from fedalign.methods.stacked_training import train_stacked
from fedalign.methods.survey import Evaluation, SurveyMethod, SurveyPhase
from fedalign.metrics.record import MetricSum, encode
from fedalign.models.gpo import GPOModel
from fedalign.models.stacked import Stack, stackable
from fedalign.objectives.gpo_nll import segment_log_softmax
from fedalign.privacy.dp_sgd import UnitLosses
from fedalign.privacy.local import KEY, LocalPrivacy, Unit
from fedalign.rng import Streams
from fedalign.template import Template

PRIOR_FEATURES = 2


@dataclass(frozen=True)
class Episode:
    """How a training step splits a group's questions; the ``episode`` block of the method.

    Parameters
    ----------
    min_questions, max_questions : int
        Context size and target size are each drawn uniformly from this range, in questions, and cut to what
        the group has.
    """

    min_questions: Annotated[int, Field(ge=1)]
    max_questions: Annotated[int, Field(ge=1)]

    def __post_init__(self) -> None:
        """Check the order of the bounds."""
        if self.max_questions < self.min_questions:
            raise UserError(
                f"method.episode.max_questions={self.max_questions} is below "
                f"method.episode.min_questions={self.min_questions}; raise it"
            )

    def draw(self, available: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return disjoint context and target questions out of ``available`` (int64, at least 2)."""
        n = len(available)
        bounds = (self.min_questions, self.max_questions + 1)
        context, target = torch.randint(*bounds, (2,), generator=generator).tolist()
        context = min(context, n - 1)
        target = min(target, n - context)
        order = available[torch.randperm(n, generator=generator)]
        return order[:context], order[context : context + target]


class GPOPhase(SurveyPhase):
    """Federated training of a GPO network, on top of a question prior where the artefacts hold one."""

    name = "gpo"
    local_units: frozenset[Unit] = frozenset({"user"})

    def __init__(self, method: PluralLLM, setting: Setting) -> None:
        assert isinstance(setting.model, GPOModel)
        self.rounds = setting.rounds
        self.local_steps = method.local.steps
        self.client_weight = 1.0 if method.weight == "uniform" else None
        self._privacy = setting.local_privacy
        self.method = method
        self.evaluation = method.evaluation
        self._with_prior = method.prior == "federated"
        self._model, self._features = setting.model, setting.features
        # The workspace that states are loaded into; its own weights mean nothing.
        self._network = self._build(Streams(0))

    def initial(self, streams: Streams, artefacts: Artefacts) -> State:
        """Return freshly drawn weights, which depend on the seed alone, and the prior's tensors."""
        fresh = self._build(Streams(streams.seed))
        state = {name: parameter.detach() for name, parameter in fresh.named_parameters()}
        return {**state, **artefacts.get(QuestionPriorPhase.name, {})}

    def template(self, state: State) -> Template:
        """Return a delta for every weight of the network."""
        return Template.of_deltas(dict(self._network.named_parameters()))

    def local(self, state: State, shard: SurveyShard, streams: Streams, memory: Memory) -> Contribution:
        """Train on episodes of the shard's groups; one gradient step sees every group of the shard once."""
        if self._privacy is not None:
            return self._local_privately(state, shard, streams, memory, self._privacy)
        local = self.method.local
        generator = streams.torch("episodes")
        bases = [self._base(state, shard, judgments) for judgments in shard.groups]
        first_points = 0

        def loss(step: int) -> Tensor:
            nonlocal first_points
            episodes = self._episodes(shard, bases, generator)
            if step == 0:
                first_points = sum(episode.points for episode in episodes)
            return torch.stack([e.loss(self._network, self.method.loss_reduction) for e in episodes]).mean()

        steps = (local.steps * (streams.round - 1), local.steps * self.rounds)
        value = train(self._network, state, loss, local, *steps, memory)
        weight = self._weight(shard, first_points)
        after = dict(self._network.named_parameters())
        contribution = weighted_delta({name: state[name] for name in after}, after, weight)
        return Contribution(contribution.tensors, {**contribution.scalars, **_losses(shard, value)})

    def stacked_size(self) -> int:
        """Return the network's size; 0 with DP-SGD, which bounds the gradients of one client's units at a time."""
        if self._privacy is not None or not stackable(self._network):
            return 0
        return sum(parameter.numel() for parameter in self._network.parameters())

    def local_many(
        self, state: State, shards: Sequence[SurveyShard], streams: Sequence[Streams], memories: Sequence[Memory]
    ) -> StackedContribution:
        """Train every client on episodes of its own groups."""
        local, count = self.method.local, len(shards)
        generators = [own.torch("episodes") for own in streams]
        bases = [[self._base(state, shard, judgments) for judgments in shard.groups] for shard in shards]
        first_points: list[int] = []

        def losses(step: int) -> Tensor:
            episodes = [self._episodes(shards[i], bases[i], generators[i]) for i in range(count)]
            if step == 0:
                first_points.extend(sum(episode.points for episode in own) for own in episodes)
            return stacked_losses(self._stack.network, episodes, self.method.loss_reduction)

        steps = (local.steps * (streams[0].round - 1), local.steps * self.rounds)
        outcome = train_stacked(self._stack, state, losses, local, *steps, memories)
        weights = [self._weight(shard, points) for shard, points in zip(shards, first_points, strict=True)]
        own = [Contribution(scalars=_losses(shard, value)) for shard, value in zip(shards, outcome.losses, strict=True)]
        return stacked_delta(state, self._stack.parameters, weights, own, outcome.failures)

    def predict(
        self, state: State, shard: SurveyShard, judgments: GroupJudgments, context: Tensor, target: Tensor
    ) -> Tensor:
        """Return the softmax of the predicted means; the predicted variance is not used (as in the paper)."""
        load_parameters(self._network, state)
        base = self._base(state, shard, judgments)
        episode = lay_out(judgments, base, context, target)
        mean, _ = episode.predict(self._network)
        return segment_log_softmax(mean.double(), episode.target.segments, episode.target.questions).exp()

    def _local_privately(
        self, state: State, shard: SurveyShard, streams: Streams, memory: Memory, privacy: LocalPrivacy
    ) -> Contribution:
        """Return the change of the network by DP-SGD, at a weight that says nothing of the client."""
        local, units = self.method.local, _EachGroup(self, shard, privacy.draws(streams))
        steps = (local.steps * (streams.round - 1), local.steps * self.rounds)
        train_privately(self._network, state, units, local, privacy, *steps, memory, streams)
        return weighted_delta(state, dict(self._network.named_parameters()), 1.0)

    def _build(self, streams: Streams) -> nn.Module:
        with streams.torch_default("gpo/initial"):
            return self._model.build(self._features, PRIOR_FEATURES if self._with_prior else 0)

    @functools.cached_property
    def _stack(self) -> Stack:
        return Stack(self._network)

    def _episodes(
        self, shard: SurveyShard, bases: Sequence[Base | None], generator: torch.Generator
    ) -> list[GPOEpisode]:
        """Draw a step's episodes, one for each of a shard's groups."""
        drawn = [(judgments, self.method.episode.draw(judgments.train, generator)) for judgments in shard.groups]
        return [lay_out(judgments, base, *split) for (judgments, split), base in zip(drawn, bases, strict=True)]

    def _base(self, state: State, shard: SurveyShard, judgments: GroupJudgments) -> Base | None:
        return base_of(state, shard, judgments, self.method.smoothing) if self._with_prior else None

    def _weight(self, shard: SurveyShard, first_points: int) -> float:
        """Return the client's weight in the mean."""
        questions = sum(len(judgments.train) for judgments in shard.groups)
        return {"uniform": 1.0, "questions": float(questions), "points": float(first_points)}[self.method.weight]

    def episode_loss(self, judgments: GroupJudgments, base: Base | None, context: Tensor, target: Tensor) -> Tensor:
        """Return the negative log-likelihood of one group's target points given its context."""
        return lay_out(judgments, base, context, target).loss(self._network, self.method.loss_reduction)


def _losses(shard: SurveyShard, value: float) -> dict[str, float]:
    """Return a client's training loss, as that of each of its groups."""
    return encode([MetricSum("train/loss", judgments.group, value, 1.0) for judgments in shard.groups])


class _EachGroup(UnitLosses):
    """A unit is one group of a client; a step sees one episode of it."""

    def __init__(self, phase: GPOPhase, shard: SurveyShard, streams: Streams) -> None:
        self._phase, self._groups, self._streams = phase, shard.groups, streams

    @property
    def units(self) -> int:
        return len(self._groups)

    def losses(self, chosen: Tensor, step: int) -> Tensor:
        return torch.stack([self._loss(self._groups[unit], step) for unit in chosen.tolist()])

    def _loss(self, judgments: GroupJudgments, step: int) -> Tensor:
        generator = self._streams.torch(f"dp_sgd/{step}/{judgments.group}")
        context, target = self._phase.method.episode.draw(judgments.train, generator)
        return self._phase.episode_loss(judgments, None, context, target)


@dataclass(frozen=True)
class PluralLLM(SurveyMethod):
    """Settings of PluralLLM.

    Parameters
    ----------
    name : str
    prior : {"none", "federated"}
        ``none`` is the paper's method; ``federated`` learns the question prior first.
    smoothing : float
        Pseudo-groups of uniform answers in the prior.
    episode : Episode
    loss_reduction : {"mean", "sum"}
        Over a step's target points; the released code sums.
    weight : {"uniform", "questions", "points"}
        A client's weight in the mean: equal, its training questions, or the points of the round's first episode
        (the released code's).
    local : LocalTraining
    evaluation : Evaluation
    """

    model: ClassVar[type[GPOModel]] = GPOModel

    name: str
    prior: Literal["none", "federated"]
    smoothing: Annotated[float, Field(gt=0)]
    episode: Episode
    loss_reduction: Literal["mean", "sum"]
    weight: Literal["uniform", "questions", "points"]
    local: LocalTraining
    evaluation: Evaluation

    def phases(self, setting: Setting) -> Sequence[Phase[SurveyShard]]:
        """Return the prior's phase, where it is used, and the network's."""
        if setting.local_privacy is not None:
            self._check_private(setting.local_privacy)
        phases: list[Phase[SurveyShard]] = []
        if self.prior == "federated":
            phases.append(QuestionPriorPhase(self.smoothing, self.evaluation, setting.questionnaire))
        return [*phases, GPOPhase(self, setting)]

    def _check_private(self, privacy: LocalPrivacy) -> None:
        """Refuse settings under which one group would reach what is sent past the noise."""
        check_private(self.local)
        if self.prior != "none":
            raise UserError(
                f"{KEY}: method.prior={self.prior} sums answers, which DP-SGD does not hide; set method.prior=none "
                "(method.predictor.prior=none of method=plural_rlhf) or privacy=central"
            )
        check_equal_weight(self.weight)
        if privacy.settings.unit != "user":
            raise UserError(
                f"{KEY}.unit={privacy.settings.unit}: an answer is context of a group's other answers and cannot be "
                f"protected alone; set {KEY}.unit=user, which protects whole groups"
            )
        if privacy.settings.grad_sample != "loop":
            raise UserError(
                f"{KEY}.grad_sample={privacy.settings.grad_sample}: groups are read one by one and have different "
                f"numbers of points; set {KEY}.grad_sample=loop"
            )
