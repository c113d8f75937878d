"""Texts laid out over clients: the federated form of every source of texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedalign.data.corpus import STAGES, CorpusPartition, CorpusShard, CorpusSource
from fedalign.data.federated import ClientInfo, FederatedData
from fedalign.rng import Streams


@dataclass(frozen=True)
class CorpusData(FederatedData):
    """Clients with texts.

    Parameters
    ----------
    shards : mapping from client to CorpusShard
        Training clients first.
    dropped : mapping from rule to count
    """

    shards: Mapping[str, CorpusShard]
    dropped: Mapping[str, int]

    @property
    def clients(self) -> Sequence[ClientInfo]:
        """All clients, training clients first, each with the stages that it has examples for."""
        return [ClientInfo(shard.client, shard.role, _stages(shard)) for shard in self.shards.values()]

    def shard(self, client: str) -> CorpusShard:
        """Return a client's texts."""
        return self.shards[client]


def federate_corpus(source: CorpusSource, partition: CorpusPartition, streams: Streams) -> CorpusData:
    """Load and partition texts.

    Raises
    ------
    UserError
        If the data are missing, malformed, or do not fit the partition.
    """
    corpus = source.load(streams)
    shards, dropped = partition.split(corpus, streams)
    return CorpusData({shard.client: shard for shard in shards}, dict(Counter(corpus.dropped) + Counter(dropped)))


def _stages(shard: CorpusShard) -> tuple[str, ...]:
    return tuple(stage for stage in STAGES if shard.stages.get(stage))
