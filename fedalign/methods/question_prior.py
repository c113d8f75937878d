"""A federated question prior: the mean of the training groups' answers to the same question, learnt as a sum.

No group's answers reach the server: it sees the sum over groups and how many groups answered. A client that
predicts its own training answers takes its own share out again (leave-one-out), so that no target is part of
the distribution it is predicted from. The prior alone is also the baseline that published comparisons lack.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedalign.contribution import Contribution, State
from fedalign.data.schema import GroupJudgments, SurveyShard
from fedalign.methods.base import (
    Artefacts,
    Memory,
    Participation,
    Phase,
    ServerOptimizer,
    Setting,
)
from fedalign.methods.survey import Evaluation, SurveyMethod, SurveyPhase, points_of
from fedalign.rng import Streams
from fedalign.template import Template

QUESTION = "question/"
CONTRIBUTOR = "contributor/"
IDS = "prior.ids"
OFFSETS = "prior.offsets"
SUMS = "prior.sums"
COUNTS = "prior.counts"
CLIENTS = "prior.clients"

_SHORTEST_ROW = 3
"""Numbers that are sent of a question with two options."""


def stable_id(text: str) -> int:
    """Return a 63-bit integer for a name, the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True)
class Base:
    """The prior as one group may use it.

    Parameters
    ----------
    shares : float32 Tensor, shape (points of the group,)
        Base distribution of every question; uniform where nothing is known. Sums to 1 within a question.
    support : float32 Tensor, shape (points of the group,)
        How many other groups the question's distribution comes from, repeated over its points.
    """

    shares: Tensor
    support: Tensor


def empty_prior(questionnaire: Mapping[str, int]) -> State:
    """Return the prior that knows what is asked, and no answers: every base distribution is uniform."""
    sizes = {stable_id(question): size for question, size in questionnaire.items()}
    ids = sorted(sizes)
    offsets = torch.tensor([0] + [sizes[key] for key in ids], dtype=torch.int64).cumsum(0)
    return {
        IDS: torch.tensor(ids, dtype=torch.int64),
        OFFSETS: offsets,
        SUMS: torch.zeros(int(offsets[-1])),
        COUNTS: torch.zeros(len(ids)),
        CLIENTS: torch.zeros(0, dtype=torch.int64),
    }


def contribute_answers(shard: SurveyShard) -> Contribution:
    """Return the shard's part of the prior: per question the summed shares and, last, the number of groups.

    The names say which questions the client answered; :func:`contribute_to_known` does not.
    """
    tensors: dict[str, Tensor] = {}
    for judgments in shard.groups:
        for question in judgments.train.tolist():
            low, high = judgments.offsets[question], judgments.offsets[question + 1]
            row = torch.cat([judgments.shares[low:high], torch.ones(1)])
            name = QUESTION + judgments.question_ids[question]
            tensors[name] = tensors[name] + row if name in tensors else row
    return Contribution(tensors, {CONTRIBUTOR + shard.client: 1.0})


def pack_prior(total: Contribution) -> State:
    """Turn the total of :func:`contribute_answers` into the tensors that are broadcast."""
    rows = {
        stable_id(name.removeprefix(QUESTION)): row for name, row in total.tensors.items() if name.startswith(QUESTION)
    }
    ids = sorted(rows)
    sizes = torch.tensor([0] + [len(rows[key]) - 1 for key in ids], dtype=torch.int64)
    clients = sorted(stable_id(k.removeprefix(CONTRIBUTOR)) for k in total.scalars if k.startswith(CONTRIBUTOR))
    return {
        IDS: torch.tensor(ids, dtype=torch.int64),
        OFFSETS: sizes.cumsum(0),
        SUMS: torch.cat([rows[key][:-1] for key in ids]).float() if ids else torch.zeros(0),
        COUNTS: torch.tensor([float(rows[key][-1]) for key in ids]),
        CLIENTS: torch.tensor(clients, dtype=torch.int64),
    }


def contribute_to_known(state: State, shard: SurveyShard) -> Contribution:
    """Return the shard's part of a prior whose questions are known: sums and counts of all, most of them zero.

    A question that the prior does not know is left out.
    """
    sums, counts = torch.zeros_like(state[SUMS]), torch.zeros_like(state[COUNTS])
    for judgments in shard.groups:
        known, rows = _rows_of(state, judgments, judgments.train)
        points = points_of(judgments, known)
        first = judgments.offsets[known][points.segments]
        places = state[OFFSETS][rows[points.segments]] + points.index - first
        sums.index_add_(0, places, judgments.shares[points.index])
        counts.index_add_(0, rows, torch.ones(len(rows)))
    return Contribution({SUMS: sums, COUNTS: counts}, {CONTRIBUTOR + shard.client: 1.0})


def update_known(state: State, total: Contribution) -> State:
    """Return the prior of the questions that somebody answered, from the total of :func:`contribute_to_known`.

    Noise may have made sums and counts negative; they are cut off at 0, and what is left of a question's sums still
    says something. A total that names no contributors, as one under a privacy guarantee, is used by everyone as it is:
    nobody takes its own part out.
    """
    clients = sorted(stable_id(k.removeprefix(CONTRIBUTOR)) for k in total.scalars if k.startswith(CONTRIBUTOR))
    counts, sizes = total.tensors[COUNTS].float(), state[OFFSETS].diff()
    answered = counts != 0
    return {
        IDS: state[IDS][answered],
        OFFSETS: torch.cat([torch.zeros(1, dtype=torch.int64), sizes[answered].cumsum(0)]),
        SUMS: total.tensors[SUMS].float().clamp_min(0)[torch.repeat_interleave(answered, sizes)],
        COUNTS: counts[answered].clamp_min(0),
        CLIENTS: torch.tensor(clients, dtype=torch.int64),
    }


def base_of(state: State, shard: SurveyShard, judgments: GroupJudgments, smoothing: float) -> Base:
    """Return the base distributions for one group of a shard, with that group's own answers taken out.

    Parameters
    ----------
    state : State
        Holds the prior's tensors.
    shard : SurveyShard
        Its answers are in the prior if its client stands among the contributors.
    judgments : GroupJudgments
        One of the shard's groups.
    smoothing : float
        Pseudo-groups of uniform answers that are mixed in.
    """
    sums, counts = _look_up(state, judgments)
    if stable_id(shard.client) in state[CLIENTS].tolist():
        own = points_of(judgments, judgments.train)
        sums[own.index] -= judgments.shares[own.index]
        counts[judgments.train] -= 1
    sizes = judgments.offsets.diff()
    segments = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    support = counts[segments]
    shares = (sums.clamp_min(0) + smoothing / sizes[segments]) / (support + smoothing)
    mass = torch.zeros(len(sizes)).index_add(0, segments, shares)
    return Base(shares / mass[segments], support)


def _look_up(state: State, judgments: GroupJudgments) -> tuple[Tensor, Tensor]:
    """Return the prior's sums, shape (points,), and counts, shape (questions,); zero where it knows nothing."""
    sums, counts = torch.zeros(len(judgments.shares)), torch.zeros(len(judgments.question_ids))
    known, rows = _rows_of(state, judgments, torch.arange(len(judgments.question_ids)))
    points = points_of(judgments, known)
    first = judgments.offsets[known][points.segments]
    sums[points.index] = state[SUMS][state[OFFSETS][rows][points.segments] + points.index - first]
    counts[known] = state[COUNTS][rows]
    return sums, counts


def _rows_of(state: State, judgments: GroupJudgments, questions: Tensor) -> tuple[Tensor, Tensor]:
    """Return those of ``questions`` that the prior knows with as many options, and their rows in it."""
    ids, nothing = state[IDS], torch.zeros(0, dtype=torch.int64)
    if not len(ids) or not len(questions):
        return nothing, nothing
    wanted = torch.tensor([stable_id(judgments.question_ids[question]) for question in questions.tolist()])
    rows = torch.searchsorted(ids, wanted).clamp_max(len(ids) - 1)
    sizes = judgments.offsets.diff()[questions]
    known = (ids[rows] == wanted) & (state[OFFSETS].diff()[rows] == sizes)
    return questions[known], rows[known]


class QuestionPriorPhase(SurveyPhase):
    """One round in which every training client adds its answers to the prior."""

    name = "question_prior"
    rounds = 1
    participation = Participation.ALL

    def __init__(self, smoothing: float, evaluation: Evaluation, questionnaire: Mapping[str, int]) -> None:
        self.smoothing, self.evaluation, self.questionnaire = smoothing, evaluation, questionnaire

    def initial(self, streams: Streams, artefacts: Artefacts) -> State:
        """Return the empty prior."""
        return empty_prior(self.questionnaire)

    def template(self, state: State) -> Template | None:
        """Return the sums and counts of all questions; None where it is not known which are asked."""
        if not len(state[IDS]):
            return None
        return Template({name: tuple(state[name].shape) for name in (SUMS, COUNTS)})

    def check_reply(self, state: State, contribution: Contribution) -> None:
        """Refuse anything but a row of shares and a count for each question."""
        for name, row in contribution.tensors.items():
            if row.ndim != 1 or len(row) < _SHORTEST_ROW or not row.is_floating_point():
                raise ValueError(f"{name[:80]}: shape {tuple(row.shape)[:4]} is no question's")
            Template().check_open(Contribution({name: row}), {QUESTION: tuple(row.shape)})

    def local(self, state: State, shard: SurveyShard, streams: Streams, memory: Memory) -> Contribution:
        """Return the shard's answers as sums."""
        return contribute_to_known(state, shard) if len(state[IDS]) else contribute_answers(shard)

    def update(self, state: State, total: Contribution, optimizer: ServerOptimizer) -> State:
        """Return the packed prior."""
        return update_known(state, total) if len(state[IDS]) else pack_prior(total)

    def predict(
        self, state: State, shard: SurveyShard, judgments: GroupJudgments, context: Tensor, target: Tensor
    ) -> Tensor:
        """Return the base distribution itself; the context is not used."""
        return base_of(state, shard, judgments, self.smoothing).shares[points_of(judgments, target).index]


@dataclass(frozen=True)
class QuestionMean(SurveyMethod):
    """Predict every group by the mean of the training groups' answers to the same question.

    Parameters
    ----------
    name : str
    smoothing : float
        Pseudo-groups of uniform answers mixed into each mean; must be positive, since a question that nobody
        answered has no mean.
    evaluation : Evaluation
    """

    name: str
    smoothing: Annotated[float, Field(gt=0)]
    evaluation: Evaluation

    def phases(self, setting: Setting) -> Sequence[Phase[SurveyShard]]:
        """Return the one phase; ``federation.rounds`` plays no part."""
        return [QuestionPriorPhase(self.smoothing, self.evaluation, setting.questionnaire)]
