"""Bradley-Terry reward models without a latent, one or several: FedAvg, FedEM, FedBiscuit, PAL and their relatives.

The arms differ in settings: how many heads there are, who trains which (the assignment), and whether a person's own
judgments fine-tune the heads before they predict.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedalign.contribution import Contribution, StackedContribution, State, total, weighted_delta
from fedalign.data.pairs import Judgments, PairShard
from fedalign.errors import UserError
from fedalign.methods.adaptation import Adaptation
from fedalign.methods.assignment import Assignment, Heads
from fedalign.methods.base import Artefacts, Memory, Needs, Phase, ServerOptimizer, Setting
from fedalign.methods.cluster_assignment import LOSSES
from fedalign.methods.episodes import EpisodePlan
from fedalign.methods.head_average import HEAD_WEIGHTS, change_by_head, mean_by_head, stacked_change_by_head
from fedalign.methods.local_training import LocalTraining, load_parameters, train, train_privately, trainable
from fedalign.methods.membership import Membership
from fedalign.methods.pairs import PairEvaluation, PairMethod, PairPhase, Predictor, batch_of
from fedalign.methods.reward_stack import Learner, stacked_losses
from fedalign.methods.reward_units import check_reward, reward_units
from fedalign.methods.stacked_training import train_stacked
from fedalign.metrics.record import MetricSum, encode
from fedalign.models.reward import RewardHeads, RewardSpec
from fedalign.models.stacked import Stack, stackable
from fedalign.privacy.local import LocalPrivacy, Unit
from fedalign.rng import Streams
from fedalign.template import Template


class RewardPhase(PairPhase):
    """Federated training of the heads."""

    name = "reward"
    local_units: frozenset[Unit] = frozenset({"example", "user"})

    def __init__(self, method: RewardHeadsMethod, setting: Setting) -> None:
        assert isinstance(setting.model, RewardSpec)
        check_reward(method, setting.local_privacy)
        self.rounds = setting.rounds
        self.local_steps = 0 if method.local is None else method.local.steps
        self.client_weight = 1.0 if method.weight == "uniform" else None
        self._privacy = setting.local_privacy
        self.needs = method.assignment.needs
        self.method, self.evaluation = method, method.evaluation
        self._spec, self._features = setting.model, setting.features
        # The workspace that states are loaded into; its own weights mean nothing.
        self.network = self._build(Streams(0))
        self._heads = _Workspace(self.network, method.heads, setting.model.head == "selector")

    def check(self, shard: PairShard) -> None:
        """Refuse a person with too few judgments, and a shard that the assignment cannot place."""
        super().check(shard)
        self.method.assignment.check_shard(shard)

    def initial(self, streams: Streams, artefacts: Artefacts) -> State:
        """Return freshly drawn heads, which depend on the seed alone."""
        return {name: p.detach().cpu() for name, p in trainable(self._build(Streams(streams.seed))).items()}

    def template(self, state: State) -> Template | None:
        """Return a delta for every weight, and the weight that each head was trained with."""
        if self.needs is Needs.INDIVIDUAL:
            return None
        deltas = Template.of_deltas(trainable(self.network))
        return deltas if self.method.heads == 1 else deltas | Template({HEAD_WEIGHTS: (self.method.heads,)})

    def check_reply(self, state: State, contribution: Contribution) -> None:
        """Refuse anything but what a template would hold, and each person's losses by head."""
        deltas = Template.of_deltas(trainable(self.network))
        known = deltas if self.method.heads == 1 else deltas | Template({HEAD_WEIGHTS: (self.method.heads,)})
        known.check_open(contribution, {LOSSES: (self.method.heads,)}, numbered=True)

    def local(self, state: State, shard: PairShard, streams: Streams, memory: Memory) -> Contribution:
        """Train on the judgments of episodes, context and targets alike, as the person's membership says."""
        local = self.method.local
        if local is None:
            raise ValueError("method.local=null has no federated rounds")
        if self._privacy is not None:
            return self._local_privately(state, shard, streams, memory, local, self._privacy)
        assignment = self.method.assignment
        self.load(state)
        reports = assignment.report(self._heads, shard.people, streams.round)
        members = self._members(state, shard.people, streams.round, memory)
        steps = (local.steps * (streams.round - 1), local.steps * self.rounds)
        loss = self._train(state, shard.people, members, streams, local, steps, memory)
        for member in members.values():
            member.remember(memory)
        weight = self.method.client_weight(shard)
        after = {name: parameter.detach().cpu() for name, parameter in trainable(self.network).items()}
        change = change_by_head(state, after, weight, _shares(shard.people, members))
        own = _told(reports, shard, loss)
        return Contribution({**change.tensors, **own.tensors}, {**change.scalars, **own.scalars})

    def stacked_size(self) -> int:
        """Return the heads' size; 0 with DP-SGD, which bounds the gradients of one client's units at a time."""
        if self._privacy is not None or self.method.local is None or not stackable(self.network):
            return 0
        return sum(parameter.numel() for parameter in self.network.parameters())

    def local_many(
        self, state: State, shards: Sequence[PairShard], streams: Sequence[Streams], memories: Sequence[Memory]
    ) -> StackedContribution:
        """Train every client on the judgments of its own episodes, as its people's memberships say."""
        local, past = self.method.local, streams[0].round - 1
        if local is None:
            raise ValueError("method.local=null has no federated rounds")
        self.load(state)
        reports = [self.method.assignment.report(self._heads, shard.people, past + 1) for shard in shards]
        clients = [
            Learner(
                shard.people,
                self._members(state, shard.people, past + 1, memory),
                own.torch("episodes"),
                own.torch("dropout"),
            )
            for shard, own, memory in zip(shards, streams, memories, strict=True)
        ]

        def losses(step: int) -> Tensor:
            return stacked_losses(self._stack.network, clients, self.method.episodes)

        personal = [parameter for client in clients for m in client.members.values() for parameter in m.personal]
        outcome = train_stacked(
            self._stack, state, losses, local, local.steps * past, local.steps * self.rounds, memories, personal
        )
        for client, memory in zip(clients, memories, strict=True):
            for member in client.members.values():
                member.remember(memory)
        told = [_told(*each) for each in zip(reports, shards, outcome.losses, strict=True)]
        weights = [self.method.client_weight(shard) for shard in shards]
        shares = [_shares(client.people, client.members) for client in clients]
        return stacked_change_by_head(state, self._stack.parameters, weights, shares, told, outcome.failures)

    def update(self, state: State, total: Contribution, optimizer: ServerOptimizer) -> State:
        """Return the state after one server step; each head moves along the mean of those who trained it."""
        return optimizer.step(state, mean_by_head(total))

    def update_each(self, state: State, replies: Sequence[Contribution], optimizer: ServerOptimizer) -> State:
        """Return the state after one server step, with what the assignment learns from single replies."""
        stepped = optimizer.step(state, mean_by_head(total(replies)))
        return {**stepped, **self.method.assignment.assigned(replies)}

    def load(self, state: State) -> None:
        """Put the state into the workspace network."""
        load_parameters(self.network, state)
        self.network.eval()

    def shown(self, order: Tensor, population: str) -> Tensor:
        """Return the context; with fine-tuning, all that a training person may learn from."""
        known = self.method.adapt is not None and population == "test"
        return order if known else super().shown(order, population)

    def predictors(
        self, state: State, shard: PairShard, judgments: Judgments, context: Tensor, streams: Streams
    ) -> Mapping[str, Predictor]:
        """Return the prediction of the heads that are the person's own, fine-tuned where that is asked for."""
        if self.method.adapt is not None:
            self._adapt(self.method.adapt, state, judgments, context, streams)
        decision = self.method.assignment.decision(self._heads, judgments, context)
        return {"accuracy": lambda first, second: decision(self._heads.odds(first, second))}

    def evaluate(self, state: State, shard: PairShard, streams: Streams) -> Contribution:
        """Return accuracy sums of every population that the shard holds, by category."""
        return super().evaluate(state, self.method.assignment.scored(shard), streams)

    @functools.cached_property
    def _stack(self) -> Stack:
        return Stack(self.network)

    def _build(self, streams: Streams) -> RewardHeads:
        with streams.torch_default("reward/initial"):
            return self._spec.build(self._features, self.method.heads)

    def _members(
        self, state: State, people: Sequence[Judgments], round_number: int, memory: Memory
    ) -> dict[str, Membership]:
        assign = self.method.assignment.membership
        return {person.person: assign(self._heads, state, person, round_number, memory) for person in people}

    def _train(
        self,
        state: State,
        people: Sequence[Judgments],
        members: Mapping[str, Membership],
        streams: Streams,
        settings: LocalTraining,
        steps: tuple[int, int],
        memory: Memory,
    ) -> float:
        """Train the workspace from ``state`` on the people's training judgments; return the mean loss."""
        generator = streams.torch("episodes")
        personal = [parameter for member in members.values() for parameter in member.personal]

        def loss(step: int) -> Tensor:
            return self._loss(people, members, generator)

        with streams.torch_default("dropout"):
            self.network.train()
            value = train(self.network, state, loss, settings, *steps, memory, personal)
        self.network.eval()
        return value

    def _loss(
        self, people: Sequence[Judgments], members: Mapping[str, Membership], generator: torch.Generator
    ) -> Tensor:
        """Return the mean loss over the judgments of a step."""
        losses = []
        for pick in self.method.episodes.picks(people, generator):
            batch = batch_of(pick.judgments, pick.index, generator)
            logits = self.network.logits(batch.first, batch.second)
            losses.append(members[pick.judgments.person].losses(logits, batch.preferred, pick.index))
        return torch.cat(losses).mean()

    def _local_privately(
        self,
        state: State,
        shard: PairShard,
        streams: Streams,
        memory: Memory,
        local: LocalTraining,
        privacy: LocalPrivacy,
    ) -> Contribution:
        """Return the change of the head by DP-SGD, at a weight that says nothing of the client."""
        draws = privacy.draws(streams)
        units = reward_units(self.method, privacy.settings.unit, self.network, shard.people, draws)
        steps = (local.steps * (streams.round - 1), local.steps * self.rounds)
        with draws.torch_default("dropout"):
            self.network.train()
            train_privately(self.network, state, units, local, privacy, *steps, memory, streams)
        self.network.eval()
        after = {name: parameter.detach().cpu() for name, parameter in trainable(self.network).items()}
        return weighted_delta(state, after, 1.0)

    def _adapt(
        self, settings: Adaptation, state: State, judgments: Judgments, context: Tensor, streams: Streams
    ) -> None:
        """Fine-tune the workspace, from the broadcast state, on a person's judgments at ``context`` alone."""
        own = Streams(streams.seed, "adapt", client=judgments.person)
        # Evaluation runs without gradients, and indices made there cannot be used with them.
        with torch.inference_mode(False), torch.enable_grad():
            known = dataclasses.replace(judgments, train=context.clone(), test=context[:0].clone())
            memory: MutableMapping[str, Tensor] = {}
            self.load(state)
            members = self._members(state, [known], streams.round, memory)
            self._train(state, [known], members, own, settings.training(), (0, settings.steps), memory)


class _Workspace(Heads):
    """The phase's network as assignments and predictions see it."""

    def __init__(self, network: RewardHeads, count: int, joint: bool) -> None:
        self.count = count
        self._network, self._joint = network, joint

    def logits(self, judgments: Judgments, index: Tensor) -> Tensor:
        batch = batch_of(judgments, index[None], None)
        with torch.no_grad():
            return self.odds(batch.first, batch.second)[:, 0]

    def odds(self, first: Tensor, second: Tensor) -> Tensor:
        """Return each head's log odds, shape (K, ...)."""
        logits = self._network.logits(first, second)
        # A head that reads both responses may lean to a place, and here the chosen response always comes first.
        return 0.5 * (logits - self._network.logits(second, first)) if self._joint else logits


def _told(reports: Mapping[str, Tensor], shard: PairShard, loss: float) -> Contribution:
    """Return what a client adds beside its change."""
    return Contribution(reports, encode([MetricSum("train/loss", j.group, loss, 1.0) for j in shard.people]))


def _shares(people: Sequence[Judgments], members: Mapping[str, Membership]) -> Tensor:
    """Return a client's part in each head, shape (K,): the mean over its people's training judgments."""
    counts = torch.tensor([float(len(person.train)) for person in people])
    return counts / counts.sum() @ torch.stack([members[person.person].shares() for person in people])


@dataclass(frozen=True)
class RewardHeadsMethod(PairMethod):
    """Settings of the reward models without a latent.

    Parameters
    ----------
    name : str
    heads : int
        Number of whole networks side by side.
    assignment : Assignment
        Who trains which head, and which of them predict for whom.
    episodes : EpisodePlan
        A step trains on all judgments of its episodes, so that it sees as many as a variational arm's step.
    weight : {"uniform", "judgments"}
        A client's weight in the mean.
    adapt : Adaptation or None
        Fine-tuning before a prediction; None predicts with the broadcast heads.
    local : LocalTraining or None
        None trains nothing in the federation; ``federation.rounds`` must be 0 then.
    evaluation : PairEvaluation
    """

    model: ClassVar[type[RewardSpec]] = RewardSpec

    name: str
    heads: Annotated[int, Field(ge=1)]
    assignment: Assignment
    episodes: EpisodePlan
    weight: Literal["uniform", "judgments"]
    adapt: Adaptation | None
    local: LocalTraining | None
    evaluation: PairEvaluation

    def __post_init__(self) -> None:
        """Check that the assignment can serve the heads."""
        self.assignment.check_heads(self.heads)

    def client_weight(self, shard: PairShard) -> float:
        """Return a client's weight in the mean."""
        return 1.0 if self.weight == "uniform" else float(sum(len(j.train) for j in shard.people))

    def phases(self, setting: Setting) -> Sequence[Phase[PairShard]]:
        """Return the one phase."""
        if self.local is None and setting.rounds:
            raise UserError(
                f"federation.rounds={setting.rounds}, but method={self.name} trains nothing together "
                "(method.local=null); set federation.rounds=0"
            )
        return [RewardPhase(self, setting)]
