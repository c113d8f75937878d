"""Who trains which reward head, and which heads predict for whom: all heads for all, or one for each true group."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import one_hot

from fedalign.contribution import Contribution, State
from fedalign.data.names import suggest
from fedalign.data.pairs import Judgments, PairShard
from fedalign.errors import UserError
from fedalign.methods.base import Memory, Needs
from fedalign.methods.membership import Membership, WeightedHeads
from fedalign.objectives.preference import preference_nll

Decision = Callable[[Tensor], Tensor]
"""From every head's log odds, shape (K, ...), to a person's, shape (...)."""


class Heads(ABC):
    """The heads as they stand, for looking at and not for training."""

    count: int

    @abstractmethod
    def logits(self, judgments: Judgments, index: Tensor) -> Tensor:
        """Return each head's log odds, shape (K, N), that the chosen response of each judgment is preferred.

        Parameters
        ----------
        judgments : Judgments
        index : int64 Tensor, shape (N,)
        """

    def losses(self, judgments: Judgments, index: Tensor) -> Tensor:
        """Return the negative log-likelihood of each judgment under each head, shape (K, N)."""
        logits = self.logits(judgments, index)
        return preference_nll(logits, chosen_mass(judgments, index).expand_as(logits))


class Assignment(ABC):
    """Settings of an assignment; one subclass a rule, a frozen dataclass."""

    needs: ClassVar[Needs] = Needs.SUM

    def check_heads(self, heads: int) -> None:  # noqa: B027 - most rules serve any number
        """Refuse a number of heads that the rule cannot serve.

        Raises
        ------
        UserError
            Naming the setting and the fix.
        """

    def check_shard(self, shard: PairShard) -> None:  # noqa: B027 - most rules can place any
        """Refuse a client whose judgments the rule cannot place.

        Raises
        ------
        UserError
            Naming the client and the fix.
        """

    @abstractmethod
    def membership(
        self, heads: Heads, state: State, judgments: Judgments, round_number: int, memory: Memory
    ) -> Membership:
        """Return a person's part in a round; only its training judgments may be looked at.

        Parameters
        ----------
        heads : Heads
            As they were broadcast.
        state : State
        judgments : Judgments
        round_number : int
            From 1; 0 is before the first round.
        memory : mutable mapping
            The client's.
        """

    @abstractmethod
    def decision(self, heads: Heads, judgments: Judgments, context: Tensor) -> Decision:
        """Return how the heads predict for a person of whom some judgments are known.

        Parameters
        ----------
        heads : Heads
        judgments : Judgments
            Only those at ``context`` may be looked at.
        context : int64 Tensor, shape (C,)
        """

    def report(self, heads: Heads, people: Sequence[Judgments], round_number: int) -> dict[str, Tensor]:
        """Return what a client tells the server of its people, beside its update."""
        return {}

    def assigned(self, replies: Sequence[Contribution]) -> State:
        """Return what the server learns from single reports (``needs = Needs.INDIVIDUAL``)."""
        return {}

    def scored(self, shard: PairShard) -> PairShard:
        """Return the shard as it is to be evaluated."""
        return shard


@dataclass(frozen=True)
class Everybody(Assignment):
    """Everybody trains every head on everything, and the mean of their rewards predicts: one head is FedAvg."""

    def membership(
        self, heads: Heads, state: State, judgments: Judgments, round_number: int, memory: Memory
    ) -> Membership:
        """Return full weight for every head and judgment."""
        return WeightedHeads(torch.ones(heads.count, len(judgments.prompts)), torch.ones(heads.count))

    def decision(self, heads: Heads, judgments: Judgments, context: Tensor) -> Decision:
        """Return the mean over heads."""
        return lambda logits: logits.mean(0)


@dataclass(frozen=True)
class TrueGroups(Assignment):
    """One head for each category, trained and asked for that category's judgments alone.

    An upper bound: it uses the true category of every judgment, held-out ones included, which no other arm sees.

    Parameters
    ----------
    groups : tuple of str
        The categories, in the order of their heads.
    """

    groups: Annotated[tuple[str, ...], Field(min_length=1)]

    def check_heads(self, heads: int) -> None:
        """Refuse another number of heads than of groups, and a group that is listed twice."""
        if len(set(self.groups)) != len(self.groups):
            raise UserError(f"method.assignment.groups={list(self.groups)} lists a group twice; list each once")
        if heads != len(self.groups):
            raise UserError(
                f"method.heads={heads}, but method.assignment.groups lists {len(self.groups)}; set method.heads="
                f"{len(self.groups)}"
            )

    def check_shard(self, shard: PairShard) -> None:
        """Refuse a judgment whose category has no head."""
        for category in sorted({category for judgments in shard.people for category in judgments.categories}):
            self._head(category)

    def membership(
        self, heads: Heads, state: State, judgments: Judgments, round_number: int, memory: Memory
    ) -> Membership:
        """Return full weight for the head of each judgment's own category."""
        weights = one_hot(torch.tensor([self._head(c) for c in judgments.categories]), heads.count).T.float()
        return WeightedHeads(weights, weights[:, judgments.train].mean(1))

    def decision(self, heads: Heads, judgments: Judgments, context: Tensor) -> Decision:
        """Return the head of the person's category."""
        head = self._head(judgments.group)
        return lambda logits: logits[head]

    def scored(self, shard: PairShard) -> PairShard:
        """Return the shard with one entry for each of a person's categories."""
        return dataclasses.replace(shard, people=tuple(part for person in shard.people for part in _split(person)))

    def _head(self, category: str) -> int:
        if category not in self.groups:
            raise UserError(
                f"method.assignment.groups={list(self.groups)} has no head for the group {category!r}; "
                f"list all groups of the data{suggest(category, self.groups)}"
            )
        return self.groups.index(category)


def chosen_mass(judgments: Judgments, index: Tensor) -> Tensor:
    """Return the mass of each judgment on its chosen response, shape of ``index``: 1, or 1/2 for a tie."""
    return torch.where(judgments.tie[index], 0.5, 1.0)


def best_head(losses: Tensor) -> int:
    """Return the head with the least mean loss; the first of equals, and where there is no judgment.

    Parameters
    ----------
    losses : Tensor, shape (K, N)
    """
    return int(losses.sum(1).argmin())


def _split(person: Judgments) -> list[Judgments]:
    """Return a person's judgments category by category."""
    parts = []
    for category in sorted(set(person.categories)):
        own = torch.tensor([c == category for c in person.categories])
        train, test = person.train[own[person.train]], person.test[own[person.test]]
        parts.append(dataclasses.replace(person, group=category, train=train, test=test))
    return parts
