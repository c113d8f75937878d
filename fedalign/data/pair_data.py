"""Judgments laid out over clients: the federated form of every pair source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from fedalign.data.embed import EmbeddingCache, default_cache_directory, embed
from fedalign.data.federated import ClientInfo, FederatedData
from fedalign.data.on_disk import OnDisk
from fedalign.data.pairs import Judgments, Pair, PairClient, PairPartition, PairShard, PairSource, Person, Split
from fedalign.data.progress import ProgressFactory
from fedalign.data.recent import Recent
from fedalign.data.schema import Encoder, Question
from fedalign.rng import Streams


@dataclass(frozen=True)
class PairData(FederatedData):
    """Clients with judgments.

    Parameters
    ----------
    holders : mapping from client to PairClient
        Training clients first.
    vectors : mapping from question id to float32 tensor, shape (2, dim)
        Encoded responses of every pair that some client holds; see ``question_of``.
    prompt_tail : int
        How many characters of a prompt's end were encoded.
    dropped : mapping from rule to count
    infos : sequence of ClientInfo
        Of the holders, who need not be read to be named.
    """

    holders: Mapping[str, PairClient]
    vectors: Mapping[str, torch.Tensor]
    prompt_tail: int
    dropped: Mapping[str, int]
    infos: Sequence[ClientInfo]
    _shards: Recent[PairShard] = field(default_factory=Recent)

    @property
    def clients(self) -> Sequence[ClientInfo]:
        """All clients, training clients first."""
        return self.infos

    def shard(self, client: str) -> PairShard:
        """Return a client's encoded judgments; made when asked for, and kept for a while."""
        return self._shards.get(client, lambda: self._made(self.holders[client]))

    def _made(self, holder: PairClient) -> PairShard:
        people = tuple(self._judgments(person) for person in holder.people)
        return PairShard(holder.name, holder.role, people, self.prompt_tail)

    def _judgments(self, person: Person) -> Judgments:
        pairs = person.pairs
        return Judgments(
            person=person.name,
            group=person.group,
            prompts=tuple(pair.prompt for pair in pairs),
            categories=tuple(pair.group for pair in pairs),
            features=torch.stack([self.vectors[question_of(pair, self.prompt_tail).id] for pair in pairs]),
            lengths=torch.tensor([[len(pair.chosen), len(pair.rejected)] for pair in pairs], dtype=torch.float32),
            tie=torch.tensor([pair.tie for pair in pairs]),
            conflict=torch.tensor([pair.conflict for pair in pairs]),
            train=_indices(pairs, "train"),
            test=_indices(pairs, "test"),
        )


def question_of(pair: Pair, prompt_tail: int) -> Question:
    """Return a pair as a question with two options, the chosen response first: what an encoder's template takes."""
    return Question(pair.prompt[-prompt_tail:], (pair.chosen, pair.rejected))


def federate_pairs(
    source: PairSource,
    partition: PairPartition,
    encoder: Encoder,
    streams: Streams,
    cache: Path | None,
    progress: ProgressFactory,
) -> PairData:
    """Load, partition and encode pairs; only pairs that some client holds are encoded."""
    pairs = source.load(streams)
    clients, dropped = partition.split(pairs, streams)
    held = [pair for client in clients for person in client.people for pair in person.pairs]
    store = EmbeddingCache(default_cache_directory() if cache is None else cache)
    vectors = embed((question_of(pair, source.prompt_tail) for pair in held), encoder, store, progress)
    counts = dict(Counter(pairs.dropped) + Counter(dropped))
    infos = [ClientInfo(client.name, client.role) for client in clients]
    holders = OnDisk(PairClient, {client.name: client for client in clients})
    return PairData(holders, vectors, source.prompt_tail, counts, infos)


def _indices(pairs: Sequence[Pair], split: Split) -> torch.Tensor:
    return torch.tensor([i for i, pair in enumerate(pairs) if pair.split == split], dtype=torch.int64)
