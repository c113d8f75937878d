"""Partitions that keep groups whole: which groups train, which stay unseen, and which questions are held out."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from fedalign.data.names import suggest
from fedalign.data.schema import ClientAnswers, Distribution, Partition, Role, Survey
from fedalign.errors import UserError
from fedalign.rng import Streams

Answers = Mapping[str, Mapping[str, Distribution]]
"""Group to question id to shares."""

HeldOut = Mapping[str, frozenset[str]]
"""Group to the question ids that training must never touch."""


@dataclass(frozen=True)
class GroupPartition(Partition):
    """What all partitions share: groups are chosen, questions are held out, then training answers are laid out.

    A group's held-out questions depend on the seed and its name alone, so partitions of the same survey
    and seed hold out the same questions and their results can be compared.

    Parameters
    ----------
    train : tuple of str or None
        Groups whose answers train; None takes every group that is not unseen.
    unseen : tuple of str, int or None
        Groups that only answer evaluations, one client each: by name, or the last n in file order. None means none.
    test_fraction : float in [0, 1)
        Share of a training group's questions that are held out.
    holdout : "random" or "last"
        Hold out a random set or the last questions in file order (what PluralLLM's released code does).
    min_questions : int
        Fewest questions a group may have, after holding out: the context questions plus one to predict.
    small_groups : "error" or "drop"
        What happens to a group with fewer, unless it is named in ``train`` or ``unseen``, which is always an error.
    """

    train: tuple[str, ...] | None
    unseen: tuple[str, ...] | Annotated[int, Field(ge=0)] | None
    test_fraction: Annotated[float, Field(ge=0.0, lt=1.0)]
    holdout: Literal["random", "last"]
    min_questions: Annotated[int, Field(ge=1)]
    small_groups: Literal["error", "drop"]

    def split(self, survey: Survey, streams: Streams) -> Sequence[ClientAnswers]:
        """Return training clients, then one client for each unseen group.

        Raises
        ------
        UserError
            If a named group does not exist or is both trained on and unseen, no group trains,
            or a group has too few questions.
        """
        train, unseen = self._choose(survey)
        answers = {group: survey.answers[group] for group in train}
        held_out = {group: self._held_out(group, list(answers[group]), streams) for group in train}
        clients = [*self.lay_out(answers, held_out, streams), *(_unseen_client(survey, group) for group in unseen)]
        name, count = Counter(client.name for client in clients).most_common(1)[0]
        if count > 1:
            raise UserError(f"partition: {count} clients are called {name!r}; rename that group in the data")
        return clients

    @abstractmethod
    def lay_out(self, answers: Answers, held_out: HeldOut, streams: Streams) -> list[ClientAnswers]:
        """Return the training clients, which together hold every answer exactly once."""

    def _choose(self, survey: Survey) -> tuple[list[str], list[str]]:
        """Return the training and the unseen groups, each large enough."""
        for key, names in (("train", self.train), ("unseen", self.unseen)):
            if isinstance(names, tuple):
                _check_names(key, names, survey)
        unseen = self._unseen(survey)
        train = [group for group in survey.answers if group not in unseen] if self.train is None else list(self.train)
        both = [group for group in train if group in unseen]
        if both:
            raise UserError(f"partition: group {both[0]!r} is both in train and in unseen; remove it from one of them")
        train = [group for group in train if self._fits(survey, group, test_fraction=self.test_fraction)]
        unseen = [group for group in unseen if self._fits(survey, group, test_fraction=0.0)]
        if not train:
            raise UserError(f"partition: no group is left to train on ({len(unseen)} unseen); set partition.train")
        return train, unseen

    def _unseen(self, survey: Survey) -> list[str]:
        if isinstance(self.unseen, tuple):
            return list(self.unseen)
        groups = list(survey.answers)
        if self.small_groups == "drop":  # the last n of those that are large enough
            groups = [group for group in groups if len(survey.answers[group]) >= self.min_questions]
        return groups[-self.unseen :] if self.unseen else []

    def _fits(self, survey: Survey, group: str, test_fraction: float) -> bool:
        """Say whether a group has enough questions after holding out; if not, drop it (False) or refuse."""
        questions = len(survey.answers[group])
        left = _train_size(questions, test_fraction)
        if left >= self.min_questions:
            return True
        found = f"group {group!r} has {questions} questions, {left} of them to learn from"
        named = [name for names in (self.train, self.unseen) if isinstance(names, tuple) for name in names]
        if self.small_groups == "error" or group in named:
            raise UserError(
                f"partition.min_questions={self.min_questions}: {found}; leave the group out, set "
                "partition.small_groups=drop, or lower partition.min_questions and the context with it"
            )
        logger = logging.getLogger(__name__)
        logger.warning("%s, fewer than partition.min_questions=%d: dropped", found, self.min_questions)
        return False

    def _held_out(self, group: str, questions: list[str], streams: Streams) -> frozenset[str]:
        size = _train_size(len(questions), self.test_fraction)
        if self.holdout == "last":
            return frozenset(questions[size:])
        order = streams.at(client=group).numpy("partition/holdout").permutation(len(questions))
        return frozenset(questions[i] for i in order[size:])


@dataclass(frozen=True)
class ByGroup(GroupPartition):
    """One training client a group: the natural layout, and PluralLLM's."""

    def lay_out(self, answers: Answers, held_out: HeldOut, streams: Streams) -> list[ClientAnswers]:
        """Return one client for each training group, named like the group."""
        return [
            ClientAnswers(group, Role.TRAIN, {group: own}, {group: held_out[group]}) for group, own in answers.items()
        ]


@dataclass(frozen=True)
class Pooled(GroupPartition):
    """One client that holds all training groups: centralised training on the same answers."""

    def lay_out(self, answers: Answers, held_out: HeldOut, streams: Streams) -> list[ClientAnswers]:
        """Return a single client named ``pooled``."""
        return [ClientAnswers("pooled", Role.TRAIN, answers, held_out)]


def _check_names(key: str, names: tuple[str, ...], survey: Survey) -> None:
    for name, count in Counter(names).items():
        if name not in survey.answers:
            raise UserError(f"partition.{key}: no group {name!r} in the data{suggest(name, survey.answers)}")
        if count > 1:
            raise UserError(f"partition.{key}: group {name!r} is listed {count} times; list it once")


def _unseen_client(survey: Survey, group: str) -> ClientAnswers:
    return ClientAnswers(group, Role.UNSEEN, {group: survey.answers[group]}, {group: frozenset()})


def _train_size(questions: int, test_fraction: float) -> int:
    # The rounding removes the dust of 1 - fraction, which would turn e.g. 0.7 * 10 into 6.
    return int(round((1.0 - test_fraction) * questions, 9))
