"""How a group rewards answers that a policy drew: by what its predictor, told some of its own answers, foretells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedalign.contribution import Contribution, State
from fedalign.data.schema import GroupJudgments, Question, SurveyShard
from fedalign.errors import UserError
from fedalign.methods.survey import SurveyPhase
from fedalign.rng import Streams
from fedalign.template import Template

PREDICTOR = "predictor/"
ROLLOUTS = "rollouts."
REWARDS = "rewards/"
COUNT = "count/"
_NAMES, _OFFSETS, _FEATURES, _OPTIONS = (ROLLOUTS + name for name in ("names", "offsets", "features", "options"))


@dataclass(frozen=True)
class Rollouts:
    """N public questions with k drawn answers each, as they travel.

    Parameters
    ----------
    names : tuple of str, length N
        Ids of the questions.
    offsets : int64 Tensor, shape (N + 1,)
        Question n owns options ``offsets[n]:offsets[n+1]``.
    features : float32 Tensor, shape (options, dim)
        The encoded options, so that a client need not have met the question.
    options : int64 Tensor, shape (N, k)
        Drawn options, counted within their question.
    """

    names: tuple[str, ...]
    offsets: Tensor
    features: Tensor
    options: Tensor

    @classmethod
    def of(cls, questions: Sequence[Question], vectors: Mapping[str, Tensor], options: Tensor) -> Rollouts:
        """Join drawn options with their encoded questions."""
        sizes = torch.tensor([0, *(len(question.options) for question in questions)], dtype=torch.int64)
        names = tuple(question.id for question in questions)
        return cls(names, sizes.cumsum(0), torch.cat([vectors[name] for name in names]), options)

    def to_state(self) -> State:
        """Return the rollouts as tensors; names are bytes, padded with zeros."""
        encoded = [name.encode() for name in self.names]
        width = max(len(name) for name in encoded)
        rows = torch.tensor([list(name.ljust(width, b"\0")) for name in encoded], dtype=torch.uint8)
        return {_NAMES: rows, _OFFSETS: self.offsets, _FEATURES: self.features, _OPTIONS: self.options}

    @classmethod
    def from_state(cls, state: State) -> Rollouts:
        """Return what :meth:`to_state` wrote."""
        names = tuple(bytes(row).rstrip(b"\0").decode() for row in state[_NAMES].tolist())
        return cls(names, state[_OFFSETS], state[_FEATURES], state[_OPTIONS])


def check_context(judgments: GroupJudgments, questions: int) -> None:
    """Refuse a training group of which a round's questions may leave nothing to tell the predictor.

    Raises
    ------
    UserError
        Naming the setting and the fix.
    """
    if len(judgments.train) <= questions:
        raise UserError(
            f"method.policy.questions={questions}: group {judgments.group!r} has {len(judgments.train)} training "
            "questions, and those that are asked are no context; lower it"
        )


def score(
    predictor: SurveyPhase,
    state: State,
    shard: SurveyShard,
    judgments: GroupJudgments,
    context_questions: int,
    streams: Streams,
) -> Tensor:
    """Return a group's rewards for the rollouts of a state: the shares that it is foretold to give the drawn options.

    The predictor is told answers of the group's training questions that are not asked: an answer is never part of what
    it is foretold from, and held-out answers are not read at all.

    Parameters
    ----------
    predictor : SurveyPhase
        Its state is the part of ``state`` under ``predictor/``.
    state : State
        As broadcast.
    shard : SurveyShard
    judgments : GroupJudgments
        One of the shard's groups.
    context_questions : int
        Answers that the predictor is told, at most.
    streams : Streams
        At the client's place in the round.

    Returns
    -------
    float32 Tensor, shape (N, k)
        Between 0 and 1.
    """
    rollouts = Rollouts.from_state(state)
    known, target = with_asked(judgments, rollouts)
    left = judgments.train[~torch.isin(judgments.train, target)]
    order = torch.randperm(len(left), generator=streams.torch(f"rewards/{judgments.group}"))
    learnt = {name.removeprefix(PREDICTOR): t for name, t in state.items() if name.startswith(PREDICTOR)}
    with torch.inference_mode():
        shares = predictor.predict(learnt, shard, known, left[order[:context_questions]], target)
    return shares[rollouts.offsets[:-1, None] + rollouts.options].float().clone()


def with_asked(judgments: GroupJudgments, rollouts: Rollouts) -> tuple[GroupJudgments, Tensor]:
    """Return a group that has all asked questions, and where they are among its own, int64 of shape (N,).

    Questions that the group was not asked in the survey are put behind its own, with shares of 0 that nobody reads.
    """
    places = {name: place for place, name in enumerate(judgments.question_ids)}
    new = [n for n, name in enumerate(rollouts.names) if name not in places]
    for n in new:
        places[rollouts.names[n]] = len(places)
    sizes = rollouts.offsets.diff()[new]
    spans = [torch.arange(int(rollouts.offsets[n]), int(rollouts.offsets[n + 1])) for n in new]
    rows = torch.cat(spans) if spans else torch.zeros(0, dtype=torch.int64)
    widened = replace(
        judgments,
        question_ids=(*judgments.question_ids, *(rollouts.names[n] for n in new)),
        offsets=torch.cat([judgments.offsets, judgments.offsets[-1] + sizes.cumsum(0)]),
        features=torch.cat([judgments.features, rollouts.features[rows]]),
        shares=torch.cat([judgments.shares, torch.zeros(len(rows))]),
    )
    return widened, torch.tensor([places[name] for name in rollouts.names], dtype=torch.int64)


def contribution_of(rewards: Mapping[str, Tensor]) -> Contribution:
    """Return rewards of groups, each of shape (N, k), as sums with a count: a group may be on several clients."""
    sums = {REWARDS + group: value.flatten() for group, value in rewards.items()}
    return Contribution({**sums, **{COUNT + group: torch.ones(1) for group in rewards}})


def reward_template(groups: Sequence[str], rollouts: int) -> Template:
    """Return what contributions hold, for groups whose names are known in advance and this many drawn options."""
    sums: dict[str, tuple[int, ...]] = {REWARDS + group: (rollouts,) for group in groups}
    return Template({**sums, **{COUNT + group: (1,) for group in groups}})


def rewards_of(total: Contribution) -> tuple[list[str], Tensor]:
    """Return the groups that rewarded in a round, in the order of their names, and their rewards, shape (G, N * k)."""
    counts = {name.removeprefix(COUNT): float(t) for name, t in total.tensors.items() if name.startswith(COUNT)}
    # Noise may have moved a count; below one half nobody of the group is taken to have been there.
    groups = sorted(group for group, count in counts.items() if count > 0.5)
    rows = [total.tensors[REWARDS + group].float() / counts[group] for group in groups]
    return groups, torch.stack(rows) if rows else torch.zeros(0, 0)
