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
        self._refuse_names_twice(clients := [*self.lay_out(answers, held_out, streams), *_unseen(survey, unseen)])
        return clients

    @abstractmethod
    def lay_out(self, answers: Answers, held_out: HeldOut, streams: Streams) -> list[ClientAnswers]:
        """Return the training clients, which together hold every answer exactly once."""

    def _choose(self, survey: Survey) -> tuple[list[str], list[str]]:
        groups = list(survey.answers)
        for key, names in (("train", self.train), ("unseen", self.unseen)):
            for name in names if isinstance(names, tuple) else ():
                if name not in survey.answers:
                    raise UserError(f"partition.{key}: no group {name!r} in the data{suggest(name, groups)}")
        unseen = self._unseen_names(self._large_enough(survey, groups) if isinstance(self.unseen, int) else groups)
        train = list(self.train) if self.train is not None else [group for group in groups if group not in unseen]
        for name in train:
            if name in unseen:
                raise UserError(f"partition: group {name!r} is both in train and in unseen; remove it from one of them")
        train = [group for group in train if self._fits(survey, group, self._train_size(survey, group), self.train)]
        unseen = [group for group in unseen if self._fits(survey, group, len(survey.answers[group]), self.unseen)]
        if not train:
            raise UserError(f"partition: no group is left to train on ({len(unseen)} unseen); name some in partition.train")
        return train, unseen

    def _large_enough(self, survey: Survey, groups: list[str]) -> list[str]:
        if self.small_groups == "error":
            return groups
        return [group for group in groups if len(survey.answers[group]) >= self.min_questions]

    def _unseen_names(self, groups: list[str]) -> list[str]:
        if self.unseen is None or self.unseen == 0:
            return []
        return groups[-self.unseen :] if isinstance(self.unseen, int) else list(self.unseen)

    def _fits(self, survey: Survey, group: str, size: int, named: object) -> bool:
        if size >= self.min_questions:
            return True
        held = len(survey.answers[group]) - size
        found = f"group {group!r} has {size} questions" + (f" ({held} more are held out)" if held else "")
        if self.small_groups == "drop" and not isinstance(named, tuple):
            logging.getLogger(__name__).warning("%s, fewer than partition.min_questions=%d: dropped", found, self.min_questions)
            return False
        raise UserError(
            f"partition.min_questions={self.min_questions}: {found}; lower it (the context must shrink with it) or leave the group out"
        )

    def _train_size(self, survey: Survey, group: str) -> int:
        return int((1.0 - self.test_fraction) * len(survey.answers[group]))

    def _held_out(self, group: str, questions: list[str], streams: Streams) -> frozenset[str]:
        train_size = int((1.0 - self.test_fraction) * len(questions))
        if self.holdout == "last":
            return frozenset(questions[train_size:])
        order = streams.at(client=group).numpy("partition/holdout").permutation(len(questions))
        return frozenset(questions[i] for i in order[train_size:])

    @staticmethod
    def _refuse_names_twice(clients: Sequence[ClientAnswers]) -> None:
        name, count = Counter(client.name for client in clients).most_common(1)[0]
        if count > 1:
            raise UserError(f"partition: {count} clients are called {name!r}; rename that group or do not list it twice")


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


def _unseen(survey: Survey, groups: list[str]) -> list[ClientAnswers]:
    return [
        ClientAnswers(group, Role.UNSEEN, {group: survey.answers[group]}, {group: frozenset()}) for group in groups
    ]
