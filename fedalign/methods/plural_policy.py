"""Reinforcement learning from groups' rewards: the policy stays on the server, and only rewards travel to it."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedalign.contribution import Contribution, State
from fedalign.data.embed import EmbeddingCache, default_cache_directory, embed
from fedalign.data.schema import GroupJudgments, Question, Role, SurveyShard
from fedalign.errors import UserError
from fedalign.methods.base import Artefacts, Memory, ServerOptimizer, Setting
from fedalign.methods.group_rewards import (
    COUNT,
    PREDICTOR,
    REWARDS,
    ROLLOUTS,
    Rollouts,
    check_context,
    contribution_of,
    reward_template,
    rewards_of,
    score,
)
from fedalign.methods.option_policy import Batch, OptionPolicy
from fedalign.methods.public_questions import KEY, PublicQuestions, Table
from fedalign.methods.survey import ALIGNMENT, SurveyPhase, points_of
from fedalign.metrics.alignment import jensen_shannon_distance
from fedalign.metrics.record import MetricSum, encode
from fedalign.rng import Streams
from fedalign.template import Template

if TYPE_CHECKING:
    from fedalign.methods.plural_rlhf import PluralRLHF

_ANSWERS = "answers."
_IDS, _OFFSETS, _NOW, _REFERENCE, _ASKED = (
    _ANSWERS + name for name in ("ids", "offsets", "log_probabilities", "reference", "asked")
)
_ADAPTER, _MOMENTS, _HISTORY = "adapter/", "moments/", "history/"
_PLACE, _QUESTIONS = "server.place", "server.questions"


class PluralPolicyPhase(SurveyPhase):
    """A round asks some public questions, draws answers from the policy, and improves it by what groups reward.

    Clients get the drawn answers, the predictor to score them with, and how likely the policy finds every option of
    the questionnaire, which is what it is evaluated on. Its weights never leave the server.

    Parameters
    ----------
    method : PluralRLHF
    predictor : SurveyPhase
        What clients score with; trained by an earlier phase.
    setting : Setting
    questions : sequence of Question
        Public; may be empty on a client.
    """

    name = "policy"

    def __init__(
        self, method: PluralRLHF, predictor: SurveyPhase, setting: Setting, questions: Sequence[Question]
    ) -> None:
        self.method, self.predictor, self.evaluation = method, predictor, method.predictor.evaluation
        self.rounds = method.policy.rounds
        self.public = PublicQuestions.of(questions, method.held_out)
        self.policy = OptionPolicy(method.policy, self.public)
        self._encoder = setting.encoder

    def check(self, shard: SurveyShard) -> None:
        """Refuse groups that nobody named, and training groups that questions may leave without context."""
        for judgments in shard.groups:
            known = self.method.groups
            if shard.role is Role.TRAIN and known is not None and judgments.group not in known:
                raise UserError(f"method.groups={list(known)} does not name group {judgments.group!r}; add it")
            if shard.role is Role.TRAIN and self.rounds:
                check_context(judgments, self.method.policy.questions)

    def initial(self, streams: Streams, artefacts: Artefacts) -> State:
        """Return the policy as it starts, the trained predictor, and the first rollouts.

        Raises
        ------
        UserError
            If it is not known which questions may be asked.
        """
        if self.public.asked < self.method.policy.questions:
            found = len(self.public.questions)
            raise UserError(
                f"method.policy.questions={self.method.policy.questions}: {found} public questions are known, "
                f"{self.public.asked} of them to be asked; lower it, or set {KEY} to a file with more"
            )
        fresh = {name: t.cpu().clone() for name, t in self.policy.fresh(Streams(streams.seed)).adapter().items()}
        learnt = artefacts.get(self.predictor.name, {})
        reference = self.policy.log_probabilities(fresh, reference=True)
        state = {
            **{_ADAPTER + name: t for name, t in fresh.items()},
            **{PREDICTOR + name: t for name, t in learnt.items()},
            _IDS: self.public.ids,
            _OFFSETS: self.public.offsets,
            _ASKED: torch.tensor([self.public.asked]),
            _REFERENCE: reference,
        }
        return self._asking(state, reference, Streams(streams.seed, self.name, 0))

    def template(self, state: State) -> Template | None:
        """Return rewards and a count for every group; None where it is not known which groups there are."""
        if self.method.groups is None:
            return None
        return reward_template(self.method.groups, Rollouts.from_state(state).options.numel())

    def check_reply(self, state: State, contribution: Contribution) -> None:
        """Refuse anything but rewards for the rollouts, and a count for each group that has rewards."""
        rollouts = Rollouts.from_state(state).options.numel()
        Template().check_open(contribution, {REWARDS: (rollouts,), COUNT: (1,)})
        rewarded, counted = (
            {name.removeprefix(kind) for name in contribution.tensors if name.startswith(kind)}
            for kind in (REWARDS, COUNT)
        )
        if rewarded != counted:
            raise ValueError("rewards and counts are not of the same groups")

    def broadcast(self, state: State) -> State:
        """Return all but the policy, its optimiser, and what the server remembers."""
        return {name: t for name, t in state.items() if name.startswith((PREDICTOR, ROLLOUTS, _ANSWERS))}

    def local(self, state: State, shard: SurveyShard, streams: Streams, memory: Memory) -> Contribution:
        """Return each group's rewards for the rollouts; nothing of its answers but what these tell."""
        count = self.method.context_questions
        rewards = {g.group: score(self.predictor, state, shard, g, count, streams) for g in shard.groups}
        sums = [MetricSum("train/predicted_reward", g, float(r.sum()), float(r.numel())) for g, r in rewards.items()]
        contribution = contribution_of(rewards)
        return Contribution(contribution.tensors, encode(sums))

    def update(self, state: State, total: Contribution, optimizer: ServerOptimizer) -> State:
        """Improve the policy by the aggregated rewards, and draw the next round's rollouts.

        The federation's server optimiser has no part in it: what travelled is no change of weights.
        """
        seed, before = state[_PLACE].tolist()
        streams = Streams(seed, self.name, before + 1)
        groups, rewards = rewards_of(total)
        if not groups:
            return self._asking(state, state[_NOW], streams)
        history = torch.stack([state.get(_HISTORY + group, torch.tensor(torch.nan)) for group in groups])
        drawn = Rollouts.from_state(state).options
        combined = self.method.aggregation.combine(rewards, history).view_as(drawn)
        memory = {n.removeprefix(_MOMENTS): t.clone() for n, t in state.items() if n.startswith(_MOMENTS)}
        start = {n.removeprefix(_ADAPTER): t for n, t in state.items() if n.startswith(_ADAPTER)}
        batch = Batch(state[_QUESTIONS], drawn, combined)
        self.policy.improve(start, batch, state[_NOW], state[_REFERENCE], streams, memory)
        adapter = self.policy.adapter()
        remembered = self.method.aggregation.remember(history, rewards)
        moved = {
            **state,
            **{_ADAPTER + name: t for name, t in adapter.items()},
            **{_MOMENTS + name: t.detach().cpu().clone() for name, t in memory.items()},
            **{_HISTORY + group: value.clone() for group, value in zip(groups, remembered, strict=True)},
        }
        return self._asking(moved, self.policy.log_probabilities(adapter), streams)

    def predict(
        self, state: State, shard: SurveyShard, judgments: GroupJudgments, context: Tensor, target: Tensor
    ) -> Tensor:
        """Return how likely the policy finds the options of the target questions; it is the same for every group.

        Raises
        ------
        UserError
            If a question is not one that the policy was given.
        """
        found, values = Table(state[_IDS], state[_OFFSETS], state[_NOW]).look_up(judgments, target.tolist())
        if len(found) < len(target):
            raise UserError("the policy was not given one of these questions; ask those of its questionnaire")
        return values.exp()

    def evaluate(self, state: State, shard: SurveyShard, streams: Streams) -> Contribution:
        """Return sums of scores of the policy's answers against those that the groups really gave."""
        sums: list[MetricSum] = []
        asked, held_out = (slice(0, int(state[_ASKED])), slice(int(state[_ASKED]), None))
        for judgments in shard.groups:
            if shard.role is Role.UNSEEN:
                sums += _scores("unseen", state, judgments, judgments.train.tolist(), held_out)
                continue
            sums += _scores("test", state, judgments, judgments.test.tolist(), held_out)
            if self.evaluation.train:
                sums += _scores("train", state, judgments, judgments.train.tolist(), asked)
        return Contribution(scalars=encode(sums))

    def summarise(self, sums: Sequence[MetricSum], tensors: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the mean over groups of each metric, the spread of alignment scores, and the lowest reward."""
        values = super().summarise(sums, tensors)
        for name in sorted({item.name for item in sums if item.name.endswith("/reward")}):
            values[f"{name}_worst"] = min(item.total / item.n for item in sums if item.name == name)
        return values

    @functools.cached_property
    def _vectors(self) -> Mapping[str, Tensor]:
        """All questions that may be asked, encoded."""
        cache = EmbeddingCache(default_cache_directory())
        return embed(self.public.questions[: self.public.asked], self._encoder, cache)

    def _asking(self, state: State, now: Tensor, streams: Streams) -> State:
        """Return the state with a round's questions and the answers that the policy draws to them."""
        settings, generator = self.method.policy, streams.torch("rollouts")
        chosen = torch.randperm(self.public.asked, generator=generator)[: settings.questions]
        bounds = [self.public.offsets[question : question + 2].tolist() for question in chosen.tolist()]
        drawn = [
            torch.multinomial(now[low:high].exp(), settings.samples, replacement=True, generator=generator)
            for low, high in bounds
        ]
        asked = [self.public.questions[question] for question in chosen.tolist()]
        rollouts = Rollouts.of(asked, self._vectors, torch.stack(drawn))
        place = torch.tensor([streams.seed, streams.round])
        return {**state, **rollouts.to_state(), _QUESTIONS: chosen, _NOW: now, _PLACE: place}


def _scores(
    population: str, state: State, judgments: GroupJudgments, questions: Iterable[int], rows: slice
) -> list[MetricSum]:
    """Return alignment, expected share and divergence of those of a group's questions that stand in a part of a table.

    The reward is the share of the group that gives the answer which the policy draws, in expectation.
    """
    ids, log_probabilities, offsets = state[_IDS][rows], state[_NOW], state[_OFFSETS]
    offsets = offsets[rows.start :] if rows.stop is None else offsets[: rows.stop + 1]
    chosen, now = Table(ids, offsets, log_probabilities).look_up(judgments, questions)
    _, reference = Table(ids, offsets, state[_REFERENCE]).look_up(judgments, questions)
    if not len(chosen):
        return []
    points = points_of(judgments, chosen)
    actual = judgments.shares[points.index]
    distance = jensen_shannon_distance(now.exp(), actual, points.segments, points.questions)
    values = {
        ALIGNMENT: (1 - distance).sum(),
        "reward": (now.exp() * actual).sum(),
        "kl": (now.exp() * (now - reference)).sum(),
    }
    count = float(points.questions)
    return [MetricSum(f"{population}/{name}", judgments.group, float(value), count) for name, value in values.items()]
