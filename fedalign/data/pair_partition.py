"""Partitions of judgments that know who judged: one person an annotator, some of them unseen."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from fedalign.data.federated import Role
from fedalign.data.pairs import Pair, PairClient, PairPartition, PairSet, Person, Split
from fedalign.errors import UserError
from fedalign.rng import Streams

Cast = tuple[list[Person], list[Person], Mapping[str, int]]
"""The people who train, those who stay unseen, and what each rule dropped."""


@dataclass(frozen=True)
class PeoplePartition(PairPartition):
    """What all partitions share: people are made, then every person becomes a client, or all who train become one.

    Parameters
    ----------
    unseen : int
        How many further people only answer evaluations, one client each.
    pooled : bool
        Whether all training people are on one client called ``pooled``: centralised training.
    min_train, min_test : int
        Fewest training and held-out judgments a person may have: the context and a target, and something to measure.
    max_train, max_test : int or None
        Most judgments a person keeps, drawn at random; None keeps all.
    small : "error" or "drop"
        What happens to people with fewer than ``min_train`` or ``min_test``.
    """

    unseen: Annotated[int, Field(ge=0)]
    pooled: bool
    min_train: Annotated[int, Field(ge=1)]
    min_test: Annotated[int, Field(ge=0)]
    max_train: Annotated[int, Field(ge=1)] | None
    max_test: Annotated[int, Field(ge=0)] | None
    small: Literal["error", "drop"]

    def __post_init__(self) -> None:
        for split, fewest, most in (
            ("train", self.min_train, self.max_train),
            ("test", self.min_test, self.max_test),
        ):
            if most is not None and most < fewest:
                raise UserError(
                    f"partition.max_{split}={most} is less than partition.min_{split}={fewest}; raise it, or lower that"
                )

    def split(self, pairs: PairSet, streams: Streams) -> tuple[Sequence[PairClient], Mapping[str, int]]:
        """Return training clients, then one client for each unseen person, and what each rule dropped.

        Raises
        ------
        UserError
            If there are too few people or judgments.
        """
        train, unseen, dropped = self.cast(pairs, streams)
        clients = [PairClient(person.name, Role.TRAIN, (person,)) for person in train]
        if self.pooled:
            clients = [PairClient("pooled", Role.TRAIN, tuple(train))]
        clients += [PairClient(person.name, Role.UNSEEN, (person,)) for person in unseen]
        name, count = Counter(client.name for client in clients).most_common(1)[0]
        if count > 1:
            raise UserError(f"partition: {count} clients are called {name!r}; rename that annotator in the data")
        return clients, dropped

    @abstractmethod
    def cast(self, pairs: PairSet, streams: Streams) -> Cast:
        """Return at least one training person, the unseen people, and what each rule dropped."""


@dataclass(frozen=True)
class ByAnnotator(PeoplePartition):
    """One person an annotator.

    The unseen people depend on the seed alone, and ``clients`` people are among any larger number of them, so
    that runs with more clients can be compared.

    Parameters
    ----------
    clients : int or None
        How many annotators train, drawn at random; None takes all that are not unseen.
    """

    clients: Annotated[int, Field(ge=1)] | None

    def cast(self, pairs: PairSet, streams: Streams) -> Cast:
        """Return the annotators who train and the unseen ones, each with its own judgments.

        Raises
        ------
        UserError
            If judgments have no annotator, somebody has too few of them, or too few people are left.
        """
        everybody = _annotators(pairs)
        people = [person for person in everybody if self._fits(person)]
        needed = self.unseen + (self.clients or 1)
        if len(people) < needed:
            raise UserError(
                f"partition: {len(people)} annotators have enough judgments, {needed} are needed to train and to stay "
                "unseen; lower partition.clients, partition.unseen, or partition.min_train and partition.min_test"
            )
        unseen = set(_balanced(people, self.unseen, streams.numpy("partition/unseen")))
        others = [person.name for person in people if person.name not in unseen]
        order = streams.numpy("partition/clients").permutation(len(others))
        chosen = {others[i] for i in order[: self.clients]}
        train = [self._capped(person, streams) for person in people if person.name in chosen]
        small = len(everybody) - len(people)
        return (
            train,
            [self._capped(person, streams) for person in people if person.name in unseen],
            {"annotator_small": small} if small else {},
        )

    def _fits(self, person: Person) -> bool:
        """Say whether a person has enough judgments; if not, drop it (False) or refuse."""
        train, test = (sum(pair.split == split for pair in person.pairs) for split in ("train", "test"))
        if train >= self.min_train and test >= self.min_test:
            return True
        if self.small == "error":
            raise UserError(
                f"partition: annotator {person.name!r} has {train} training and {test} held-out judgments, fewer than "
                f"partition.min_train={self.min_train} or partition.min_test={self.min_test}; set "
                "partition.small=drop, or lower them and the context with them"
            )
        return False

    def _capped(self, person: Person, streams: Streams) -> Person:
        """Return the person with at most ``max_train`` and ``max_test`` judgments, in file order."""
        here = streams.at(client=person.name)
        kept: set[int] = set()
        limits: dict[Split, int | None] = {"train": self.max_train, "test": self.max_test}
        for split, most in limits.items():
            own = [i for i, pair in enumerate(person.pairs) if pair.split == split]
            order = here.numpy(f"partition/{split}").permutation(len(own))
            kept.update(own[i] for i in order[:most])
        return replace(person, pairs=tuple(person.pairs[i] for i in sorted(kept)))


def _annotators(pairs: PairSet) -> list[Person]:
    """Return everybody with all judgments, in order of appearance."""
    own: dict[str, list[Pair]] = {}
    for pair in pairs.pairs:
        if pair.annotator is None:
            raise UserError(
                "partition: the data do not say who judged; take partition=strict, ratio_90_10, ratio_70_30 or mixed, "
                "or give every row an annotator"
            )
        own.setdefault(pair.annotator, []).append(pair)
    return [Person(name, _main_group(judged), tuple(judged)) for name, judged in own.items()]


def _main_group(judged: Sequence[Pair]) -> str:
    """Return the group of most training judgments, or of most judgments if none is for training."""
    training = [pair for pair in judged if pair.split == "train"]
    return Counter(pair.group for pair in training or judged).most_common(1)[0][0]


def _balanced(people: Sequence[Person], n: int, rng: np.random.Generator) -> list[str]:
    """Return the names of n people at random, taken from the groups in turn while those have people left."""
    groups: dict[str, list[str]] = {}
    for i in rng.permutation(len(people)):
        groups.setdefault(people[i].group, []).append(people[i].name)
    names: list[str] = []
    while len(names) < n:
        for group in sorted(groups):
            if groups[group] and len(names) < n:
                names.append(groups[group].pop())
    return names
