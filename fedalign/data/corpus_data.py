"""Texts laid out over clients: the federated form of every source of texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedalign.data.corpus import STAGES, CorpusPartition, CorpusShard, CorpusSource
from fedalign.data.federated import ClientInfo, FederatedData
from fedalign.data.on_disk import OnDisk
from fedalign.data.recent import Recent
from fedalign.rng import Streams


@dataclass(frozen=True)
class CorpusData(FederatedData):
    """Clients with texts.

    Parameters
    ----------
    shards : mapping from client to CorpusShard
        Training clients first.
    dropped : mapping from rule to count
    infos : sequence of ClientInfo
        Of the shards, which need not be read to be named.
    """

    shards: Mapping[str, CorpusShard]
    dropped: Mapping[str, int]
    infos: Sequence[ClientInfo]
    _recent: Recent[CorpusShard] = field(default_factory=Recent)

    @property
    def clients(self) -> Sequence[ClientInfo]:
        """All clients, training clients first, each with the stages that it has examples for."""
        return self.infos

    def shard(self, client: str) -> CorpusShard:
        """Return a client's texts; read when asked for, and kept for a while."""
        return self._recent.get(client, lambda: self.shards[client])


def federate_corpus(source: CorpusSource, partition: CorpusPartition, streams: Streams) -> CorpusData:
    """Load and partition texts.

    Raises
    ------
    UserError
        If the data are missing, malformed, or do not fit the partition.
    """
    corpus = source.load(streams)
    shards, dropped = partition.split(corpus, streams)
    infos = [ClientInfo(shard.client, shard.role, _stages(shard)) for shard in shards]
    kept = OnDisk(CorpusShard, {shard.client: shard for shard in shards})
    return CorpusData(kept, dict(Counter(corpus.dropped) + Counter(dropped)), infos)


def _stages(shard: CorpusShard) -> tuple[str, ...]:
    return tuple(stage for stage in STAGES if shard.stages.get(stage))
