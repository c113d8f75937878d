"""Partitions of judgments that do not say who judged: every client is dealt judgments of chosen categories."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from fedalign.data.names import suggest
from fedalign.data.pair_partition import Cast, PeoplePartition
from fedalign.data.pairs import Pair, PairSet, Person, Split
from fedalign.errors import UserError
from fedalign.rng import Streams

MIXED = "mixed"
"""Group of a client whose judgments are a random part of all."""

Quota = Mapping[str, int]
"""Category to how many of its judgments a client is dealt."""

_SPLITS: tuple[Split, ...] = ("train", "test")


@dataclass(frozen=True)
class ByCategory(PeoplePartition):
    """Clients called client-001, client-002, ... are dealt equally many judgments, none of them twice.

    Clients belong to the categories in turn. The scarcest category decides how many judgments each gets; what is left
    over then is counted.

    Parameters
    ----------
    clients : int
        How many train.
    categories : tuple of str or None
        Groups of the data to deal; None deals all.
    share : float in [0.5, 1]
        Share of a client's judgments that are of its own category; the rest is spread equally over the others.
    mixed : bool
        Whether every client gets a random part of all judgments instead; ``share`` is unused then.
    """

    clients: Annotated[int, Field(ge=1)]
    categories: Annotated[tuple[str, ...], Field(min_length=1)] | None
    share: Annotated[float, Field(ge=0.5, le=1.0)]
    mixed: bool

    def cast(self, pairs: PairSet, streams: Streams) -> Cast:
        """Deal the judgments to training and unseen clients.

        Raises
        ------
        UserError
            If a category does not exist, a share below 1 has no other category, or judgments do not suffice.
        """
        pools = {split: self._pools(pairs, split, streams) for split in _SPLITS}
        training = self._training_clients(pools)
        owners = self._owners(training, list(pools["train"]))
        hands: list[list[Pair]] = [[] for _ in owners]
        left_over = 0
        for split, pool in pools.items():
            quotas = self._quotas(owners, self._size(split, owners, pool), list(pool))
            for hand, quota in zip(hands, quotas, strict=True):
                for category, n in quota.items():
                    hand.extend(pool[category].pop() for _ in range(n))
            left_over += sum(map(len, pool.values()))
        digits = max(3, len(str(len(owners))))
        people = [
            Person(f"client-{i + 1:0{digits}d}", owner, tuple(hand))
            for i, (owner, hand) in enumerate(zip(owners, hands, strict=True))
        ]
        counts = Counter(judgment_left_over=left_over, client_small=self.clients - training)
        return people[:training], people[training:], dict(+counts)

    def _pools(self, pairs: PairSet, split: Split, streams: Streams) -> dict[str, list[Pair]]:
        """Return each category's judgments of one split in random order; a single pool for mixed clients."""
        known = list(dict.fromkeys(pair.group for pair in pairs.pairs))
        categories = known if self.categories is None else list(self.categories)
        _check_categories(categories, known)
        if not self.mixed and self.share < 1.0 and len(categories) < 2:
            raise UserError(
                f"partition.share={self.share}: {categories[0]!r} is the only category; set partition.share=1.0"
            )
        chosen = [pair for pair in pairs.pairs if pair.split == split and pair.group in categories]
        pools: dict[str, list[Pair]] = {MIXED: []} if self.mixed else {category: [] for category in categories}
        for i in streams.numpy(f"partition/{split}").permutation(len(chosen)):
            pools[MIXED if self.mixed else chosen[i].group].append(chosen[i])
        return pools

    def _owners(self, training: int, categories: Sequence[str]) -> list[str]:
        """Return each client's category, training clients first; both kinds take them in turn."""
        turns = [*range(training), *range(self.unseen)]
        return [categories[turn % len(categories)] for turn in turns]

    def _training_clients(self, pools: Mapping[Split, Mapping[str, Sequence[Pair]]]) -> int:
        """Return how many training clients have enough judgments: all, or fewer if ``small`` allows that."""
        fewest = {"train": self.min_train, "test": self.min_test}

        def enough(training: int) -> bool:
            owners = self._owners(training, list(pools["train"]))
            return all(self._size(split, owners, pool) >= fewest[split] for split, pool in pools.items())

        if enough(self.clients):
            return self.clients
        possible = next((n for n in range(self.clients - 1, 0, -1) if enough(n)), 0)
        if possible and self.small == "drop":
            return possible
        owners = self._owners(self.clients, list(pools["train"]))
        train, test = (self._size(split, owners, pools[split]) for split in _SPLITS)
        fix = f"set partition.clients={possible} or less" if possible else "lower those and partition.unseen"
        raise UserError(
            f"partition.clients={self.clients}: each client would get {train} training and {test} held-out judgments, "
            f"fewer than partition.min_train={self.min_train} or partition.min_test={self.min_test}; {fix}"
        )

    def _size(self, split: Split, owners: Sequence[str], pool: Mapping[str, Sequence[Pair]]) -> int:
        """Return how many judgments of a split each client gets: as many as the scarcest category allows."""
        most = self.max_train if split == "train" else self.max_test
        supply = {category: len(judged) for category, judged in pool.items()}
        largest = sum(supply.values()) // len(owners)

        def too_large(size: int) -> bool:
            demand: Counter[str] = Counter()
            for quota in self._quotas(owners, size, list(supply)):
                demand.update(quota)
            return any(demand[category] > supply[category] for category in supply)

        sizes = range(1, (largest if most is None else min(largest, most)) + 1)
        return bisect.bisect_left(sizes, True, key=too_large)

    def _quotas(self, owners: Sequence[str], size: int, categories: Sequence[str]) -> list[Quota]:
        """Return how many judgments of each category every client gets, ``size`` together."""
        return [self._quota(owner, i // len(categories), size, categories) for i, owner in enumerate(owners)]

    def _quota(self, owner: str, turn: int, size: int, categories: Sequence[str]) -> Quota:
        others = [category for category in categories if category != owner]
        own = round(self.share * size) if others else size
        quota = {owner: own}
        for i, other in enumerate(others):
            # What does not divide equally goes to other categories on other turns.
            quota[other] = (size - own + (i + turn) % len(others)) // len(others)
        return quota


def _check_categories(categories: Sequence[str], known: Sequence[str]) -> None:
    for name, count in Counter(categories).items():
        if name not in known:
            raise UserError(f"partition.categories: no category {name!r} in the data{suggest(name, known)}")
        if count > 1:
            raise UserError(f"partition.categories: {name!r} is listed {count} times; list it once")
