"""Partitions of users' texts: a user is a client, or a silo holds many; test texts are on clients of their own."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from fedalign.data.corpus import Corpus, CorpusPartition, CorpusShard, Example
from fedalign.data.corpus_stages import Imitate, Shares, assign, readable
from fedalign.data.federated import Role
from fedalign.errors import UserError
from fedalign.rng import Streams


@dataclass(frozen=True)
class StagedPartition(CorpusPartition):
    """What all partitions share: users are given to stages, then to clients, and test texts to unseen clients.

    Which stage a user serves depends on the seed, the shares and the user's name alone: it is the same in every
    partition, and nobody's changes when a text or a user comes or goes.

    =================== ==============================================================================
    count               what was left out
    =================== ==============================================================================
    example_unused      training examples that the stages of their user cannot learn from
    test_left_over      test examples that no unseen client has room for
    =================== ==============================================================================

    Parameters
    ----------
    shares : Shares
        Share of the users that each stage reads.
    disjoint : bool
        Whether a user serves one stage at most; if not, all users serve all stages that have a share.
    imitate : {"demonstrations", "preferred"}
        What imitation reads: examples without a rejected text, or the responses of all examples.
    unseen : int
        How many clients, called test-1, test-2, ..., hold the test examples.
    test_per_client : int or None
        Most test examples of such a client; None deals them all.
    """

    shares: Shares
    # A field of its own: without field(), the default of Layout would become this one's.
    disjoint: bool = field()
    imitate: Imitate
    unseen: Annotated[int, Field(ge=0)]
    test_per_client: Annotated[int, Field(ge=1)] | None

    def split(self, corpus: Corpus, streams: Streams) -> tuple[Sequence[CorpusShard], Mapping[str, int]]:
        """Return training clients, then unseen ones, and what was left out.

        Raises
        ------
        UserError
            If a stage, a client or a test client would have nothing.
        """
        training = [example for example in corpus.examples if example.split == "train"]
        readers = readable(training, list(self.shares.served), self.imitate)
        assigned = assign(readers, self.shares, self.disjoint, streams)
        hosts = self.hosts(assigned, streams)
        shards = [*_training_shards(hosts, assigned, readers), *self._unseen_shards(corpus, streams)]
        name, count = Counter(shard.client for shard in shards).most_common(1)[0]
        if count > 1:
            raise UserError(f"partition: {count} clients are called {name!r}; rename that user in the data")
        used = {id(example) for shard in shards for examples in shard.stages.values() for example in examples}
        tested = sum(len(shard.test) for shard in shards)
        dropped = Counter(
            example_unused=len(training) - len(used),
            test_left_over=len(corpus.examples) - len(training) - tested,
        )
        return shards, dict(+dropped)

    @abstractmethod
    def hosts(self, assigned: Mapping[str, tuple[str, ...]], streams: Streams) -> Mapping[str, Sequence[str]]:
        """Return each training client's users; everybody who serves a stage is on one client.

        Parameters
        ----------
        assigned : mapping from user to tuple of str
            What stages a user serves; sorted by user.
        streams : Streams

        Raises
        ------
        UserError
            If users do not suffice.
        """

    def _unseen_shards(self, corpus: Corpus, streams: Streams) -> list[CorpusShard]:
        """Return the clients with the test examples, which are dealt in random order, in file order on each."""
        test = [example for example in corpus.examples if example.split == "test"]
        if len(test) < self.unseen:
            raise UserError(
                f"partition.unseen={self.unseen}: the data hold {len(test)} test examples, fewer than one for each; "
                f"set partition.unseen={len(test)} or less"
            )
        order = streams.numpy("partition/test").permutation(len(test))
        hands = [sorted(order[i :: self.unseen][: self.test_per_client]) for i in range(self.unseen)]
        return [
            CorpusShard(f"test-{i}", Role.UNSEEN, {}, tuple(test[place] for place in hand))
            for i, hand in enumerate(hands, start=1)
        ]


@dataclass(frozen=True)
class Users(StagedPartition):
    """One client for each user, named like the user."""

    def hosts(self, assigned: Mapping[str, tuple[str, ...]], streams: Streams) -> Mapping[str, Sequence[str]]:
        """Return a client for each user, sorted by name."""
        return {user: (user,) for user in sorted(assigned)}


@dataclass(frozen=True)
class Silos(StagedPartition):
    """Clients called silo-1, silo-2, ... that hold many users each; a coin of each user's own says which.

    Parameters
    ----------
    clients : int
        How many silos.
    """

    clients: Annotated[int, Field(ge=1)]

    def hosts(self, assigned: Mapping[str, tuple[str, ...]], streams: Streams) -> Mapping[str, Sequence[str]]:
        """Return silos of about the same size.

        Raises
        ------
        UserError
            If a silo would have nobody.
        """
        silos: dict[str, list[str]] = {f"silo-{i + 1}": [] for i in range(self.clients)}
        for user in assigned:
            coin = int(streams.at(client=user).numpy("partition/silo").integers(self.clients))
            silos[f"silo-{coin + 1}"].append(user)
        empty = [silo for silo, users in silos.items() if not users]
        if empty:
            raise UserError(
                f"partition.clients={self.clients}: nobody of {len(assigned)} users came to {empty[0]}; lower it"
            )
        return silos


def _training_shards(
    hosts: Mapping[str, Sequence[str]],
    assigned: Mapping[str, tuple[str, ...]],
    readers: Mapping[str, Sequence[Example]],
) -> list[CorpusShard]:
    """Return the training clients, with examples in file order."""
    client_of = {user: client for client, users in hosts.items() for user in users}
    own: dict[str, dict[str, list[Example]]] = {client: {} for client in hosts}
    for stage, examples in readers.items():
        for example in examples:
            if stage in assigned.get(example.user, ()):
                own[client_of[example.user]].setdefault(stage, []).append(example)
    return [
        CorpusShard(client, Role.TRAIN, {stage: tuple(found) for stage, found in stages.items()}, ())
        for client, stages in own.items()
    ]
