"""Partitions of rankings: a client is an annotator on a device, or a silo with many; some annotators are unseen."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import Field

from fedalign.data.federated import Role
from fedalign.data.ranking_people import invent, people_of
from fedalign.data.rankings import Annotator, RankingClient, RankingPartition, RankingSet, Split
from fedalign.errors import UserError
from fedalign.rng import Streams

Cast = tuple[list[Annotator], list[Annotator], Mapping[str, int]]
"""The annotators who train, those who stay unseen, and what each rule dropped."""


@dataclass(frozen=True)
class AnnotatorPartition(RankingPartition):
    """What all partitions share: who trains and who is unseen, and how many judgments everybody keeps.

    Every annotator draws lots of their own, from the seed and the name alone: the order of the file does not matter,
    the unseen ones depend on the seed alone, and those who train are among any larger number who do, so that runs of
    different size and runs of different partitions can be compared.

    Parameters
    ----------
    unseen : int
        How many further annotators only answer evaluations, one client each; as evenly from all true types (or
        groups, where types are not known) as they go.
    min_train, min_test : int
        Fewest training and held-out judgments an annotator may have.
    max_train, max_test : int or None
        Most judgments an annotator keeps, drawn at random; None keeps all.
    small : "error" or "drop"
        What happens to annotators with fewer than ``min_train`` or ``min_test``.
    """

    unseen: Annotated[int, Field(ge=0)]
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

    def split(self, rankings: RankingSet, streams: Streams) -> tuple[Sequence[RankingClient], Mapping[str, int]]:
        """Return training clients, then one client for each unseen annotator, and what each rule dropped.

        Raises
        ------
        UserError
            If there are too few annotators or judgments, or nobody knows who judged.
        """
        train, unseen, dropped = self._cast(self.everybody(rankings, streams), streams)
        clients = [*self.hosts(train, streams), *(RankingClient(own.name, Role.UNSEEN, (own,)) for own in unseen)]
        name, count = Counter(client.name for client in clients).most_common(1)[0]
        if count > 1:
            raise UserError(f"partition: {count} clients are called {name!r}; rename that annotator in the data")
        return clients, dropped

    @property
    @abstractmethod
    def wanted(self) -> tuple[str, int | None]:
        """Key and value of the setting that says how many annotators train; None for all."""

    @abstractmethod
    def everybody(self, rankings: RankingSet, streams: Streams) -> list[Annotator]:
        """Return all annotators with all of their judgments."""

    @abstractmethod
    def hosts(self, people: Sequence[Annotator], streams: Streams) -> list[RankingClient]:
        """Return the training clients that hold these annotators."""

    def _cast(self, everybody: Sequence[Annotator], streams: Streams) -> Cast:
        """Return the annotators who train and the unseen ones, each sorted by name."""
        people = [person for person in everybody if self._fits(person)]
        key, wanted = self.wanted
        needed = self.unseen + (wanted or 1)
        if len(people) < needed:
            raise UserError(
                f"partition: {len(people)} annotators have enough judgments, {needed} are needed to train and to stay "
                f"unseen; lower partition.{key}, partition.unseen, or partition.min_train and partition.min_test"
            )
        unseen = _balanced(_by_lot(people, "partition/unseen", streams), self.unseen)
        others = [person for person in people if person.name not in unseen]
        train = _by_lot(others, "partition/clients", streams)[:wanted]
        small = len(everybody) - len(people)
        return (
            [self._capped(person, streams) for person in sorted(train, key=_name)],
            [self._capped(person, streams) for person in sorted(people, key=_name) if person.name in unseen],
            {"annotator_small": small} if small else {},
        )

    def _fits(self, person: Annotator) -> bool:
        """Say whether an annotator has enough judgments; if not, drop it (False) or refuse."""
        train, test = (sum(ranking.split == split for ranking in person.rankings) for split in ("train", "test"))
        if train >= self.min_train and test >= self.min_test:
            return True
        if self.small == "error":
            raise UserError(
                f"partition: annotator {person.name!r} has {train} training and {test} held-out judgments, fewer than "
                f"partition.min_train={self.min_train} or partition.min_test={self.min_test}; set "
                "partition.small=drop, or lower them"
            )
        return False

    def _capped(self, person: Annotator, streams: Streams) -> Annotator:
        """Return the annotator with at most ``max_train`` and ``max_test`` judgments, in file order."""
        here = streams.at(client=person.name)
        kept: set[int] = set()
        limits: dict[Split, int | None] = {"train": self.max_train, "test": self.max_test}
        for split, most in limits.items():
            own = [i for i, ranking in enumerate(person.rankings) if ranking.split == split]
            order = here.numpy(f"partition/{split}").permutation(len(own))
            kept.update(own[i] for i in order[:most])
        return replace(person, rankings=tuple(person.rankings[i] for i in sorted(kept)))


@dataclass(frozen=True)
class Annotators(AnnotatorPartition):
    """One client for each annotator, named like the annotator.

    Parameters
    ----------
    clients : int or None
        How many annotators train, drawn at random; None takes all that are not unseen.
    """

    clients: Annotated[int, Field(ge=1)] | None

    @property
    def wanted(self) -> tuple[str, int | None]:
        """How many annotators train."""
        return "clients", self.clients

    def everybody(self, rankings: RankingSet, streams: Streams) -> list[Annotator]:
        """Return the annotators of the data.

        Raises
        ------
        UserError
            If somebody is not known.
        """
        return people_of(rankings)

    def hosts(self, people: Sequence[Annotator], streams: Streams) -> list[RankingClient]:
        """Return a client for each annotator."""
        return [RankingClient(person.name, Role.TRAIN, (person,)) for person in people]


@dataclass(frozen=True)
class Silos(AnnotatorPartition):
    """Clients called silo-1, silo-2, ... that hold annotators, dealt at random; the same who would be clients.

    Parameters
    ----------
    silos : int
        How many; 1 is centralised training.
    annotators : int or None
        How many annotators train, drawn at random; None takes all that are not unseen.
    judgments_per_person : int
        How many training judgments a made-up person has, where the data name no annotator at all.
    """

    silos: Annotated[int, Field(ge=1)]
    annotators: Annotated[int, Field(ge=1)] | None
    judgments_per_person: Annotated[int, Field(ge=1)]

    @property
    def wanted(self) -> tuple[str, int | None]:
        """How many annotators train."""
        return "annotators", self.annotators

    def everybody(self, rankings: RankingSet, streams: Streams) -> list[Annotator]:
        """Return the annotators of the data, or made-up people if the data name nobody.

        Raises
        ------
        UserError
            If only some judgments say who judged.
        """
        if all(ranking.annotator is None for ranking in rankings.rankings):
            return invent(rankings.rankings, self.judgments_per_person, streams)
        return people_of(rankings)

    def hosts(self, people: Sequence[Annotator], streams: Streams) -> list[RankingClient]:
        """Return silos whose sizes differ by one annotator at most.

        Raises
        ------
        UserError
            If there are fewer annotators than silos.
        """
        if len(people) < self.silos:
            raise UserError(f"partition.silos={self.silos}: only {len(people)} annotators train; lower it")
        dealt = _by_lot(people, "partition/silo", streams)
        return [
            RankingClient(f"silo-{i + 1}", Role.TRAIN, tuple(sorted(dealt[i :: self.silos], key=_name)))
            for i in range(self.silos)
        ]


def _by_lot(people: Sequence[Annotator], purpose: str, streams: Streams) -> list[Annotator]:
    """Return the annotators in random order, in which everybody's place follows from a lot of their own."""
    return sorted(people, key=lambda person: streams.at(client=person.name).integer(purpose))


def _balanced(people: Sequence[Annotator], n: int) -> set[str]:
    """Return the names of the first n annotators, taken from the types in turn while those have people left."""
    types: dict[str, list[str]] = {}
    for person in reversed(people):
        types.setdefault(person.type or _main_group(person), []).append(person.name)
    names: list[str] = []
    while len(names) < n:
        for kind in sorted(types):
            if types[kind] and len(names) < n:
                names.append(types[kind].pop())
    return set(names)


def _main_group(person: Annotator) -> str:
    """Return the group of most training judgments, or of most judgments if none is for training."""
    training = [ranking for ranking in person.rankings if ranking.split == "train"]
    return Counter(ranking.group for ranking in training or person.rankings).most_common(1)[0][0]


def _name(person: Annotator) -> str:
    return person.name
