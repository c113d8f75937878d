"""Rankings laid out over clients: the federated form of every ranking source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fedalign.data.embed import EmbeddingCache, default_cache_directory, embed
from fedalign.data.federated import ClientInfo, FederatedData
from fedalign.data.on_disk import OnDisk
from fedalign.data.progress import ProgressFactory
from fedalign.data.rankings import (
    Annotator,
    Menu,
    Ranking,
    RankingClient,
    RankingPartition,
    RankingSet,
    RankingShard,
    RankingSource,
    Split,
)
from fedalign.data.recent import Recent
from fedalign.data.schema import Encoder, Question
from fedalign.rng import Streams


@dataclass(frozen=True)
class RankingData(FederatedData):
    """Clients with rankings.

    Parameters
    ----------
    holders : mapping from client to RankingClient
        Training clients first.
    vectors : mapping from client to sequence of float32 tensor, shape (S, dim)
        Encoded responses of each judgment of a client, in the order of its annotators.
    probe : sequence of Menu
        The public menus that annotators were asked about; empty where there are none.
    dropped : mapping from rule to count
    infos : sequence of ClientInfo
        Of the holders, who need not be read to be named.
    """

    holders: Mapping[str, RankingClient]
    vectors: Mapping[str, Sequence[Tensor]]
    probe: Sequence[Menu]
    dropped: Mapping[str, int]
    infos: Sequence[ClientInfo]
    _shards: Recent[RankingShard] = field(default_factory=Recent)

    @property
    def clients(self) -> Sequence[ClientInfo]:
        """All clients, training clients first."""
        return self.infos

    def shard(self, client: str) -> RankingShard:
        """Return a client's encoded rankings; made when first asked for."""
        return self._shards.get(client, lambda: self._made(self.holders[client]))

    def _made(self, holder: RankingClient) -> RankingShard:
        rankings = judged(holder)
        owners = [place for place, person in enumerate(holder.annotators) for _ in person.rankings]
        return RankingShard(
            client=holder.name,
            role=holder.role,
            people=tuple(person.name for person in holder.annotators),
            types=tuple(person.type for person in holder.annotators),
            owner=torch.tensor(owners, dtype=torch.int64),
            prompts=tuple(ranking.prompt for ranking in rankings),
            responses=tuple(ranking.responses for ranking in rankings),
            groups=tuple(ranking.group for ranking in rankings),
            features=pad_sequence(list(self.vectors[holder.name]), batch_first=True),
            tiers=_padded([ranking.tiers for ranking in rankings]),
            train=_indices(rankings, "train"),
            test=_indices(rankings, "test"),
            probe=_answers(holder.annotators, self.probe),
        )


def federate_rankings(
    source: RankingSource,
    partition: RankingPartition,
    encoder: Encoder,
    streams: Streams,
    cache: Path | None,
    progress: ProgressFactory,
) -> RankingData:
    """Load, partition and encode rankings; only rankings that some client holds are encoded.

    Nothing is encoded where the source has vectors of its own.
    """
    rankings = source.load(streams)
    clients, dropped = partition.split(rankings, streams)
    held = [ranking for client in clients for ranking in judged(client)]
    vectors = source.vectors(held)
    if vectors is None:
        questions = [question_of(ranking, source.prompt_tail) for ranking in held]
        store = EmbeddingCache(default_cache_directory() if cache is None else cache)
        encoded = embed(questions, encoder, store, progress)
        return _data(clients, EncodedByClient(clients, encoded, source.prompt_tail), rankings, dropped)
    dealt = iter(vectors)
    own = {client.name: [next(dealt).float() for _ in judged(client)] for client in clients}
    return _data(clients, own, rankings, dropped)


class EncodedByClient(Mapping[str, Sequence[Tensor]]):
    """Encoded responses by client, stacked when they are asked for.

    Parameters
    ----------
    clients : sequence of RankingClient
    encoded : mapping from question id to float32 tensor, shape (S, dim)
    prompt_tail : int
    """

    def __init__(self, clients: Sequence[RankingClient], encoded: Mapping[str, Tensor], prompt_tail: int) -> None:
        self._questions = {
            client.name: [question_of(ranking, prompt_tail).id for ranking in judged(client)] for client in clients
        }
        self._encoded = encoded

    def __getitem__(self, client: str) -> list[Tensor]:
        """Return the vectors of a client's judgments, shape (S, dim) each."""
        return [self._encoded[question] for question in self._questions[client]]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the clients' names."""
        return iter(self._questions)

    def __len__(self) -> int:
        """Return the number of clients."""
        return len(self._questions)


def _data(
    clients: Sequence[RankingClient],
    vectors: Mapping[str, Sequence[Tensor]],
    rankings: RankingSet,
    dropped: Mapping[str, int],
) -> RankingData:
    return RankingData(
        holders=OnDisk(RankingClient, {client.name: client for client in clients}),
        vectors=vectors,
        probe=rankings.probe,
        dropped=dict(Counter(rankings.dropped) + Counter(dropped)),
        infos=[ClientInfo(client.name, client.role) for client in clients],
    )


def judged(client: RankingClient) -> list[Ranking]:
    """Return all judgments of a client, annotator by annotator."""
    return [ranking for person in client.annotators for ranking in person.rankings]


def question_of(ranking: Ranking, prompt_tail: int) -> Question:
    """Return a judgment's menu as a question with options, which is what an encoder's template takes."""
    return Question(ranking.prompt[-prompt_tail:], ranking.responses)


def _answers(people: Sequence[Annotator], probe: Sequence[Menu]) -> Tensor:
    """Return the probe's tiers, shape (P, M, R); -1 where a menu has no such response or was not answered."""
    widest = max((len(menu.responses) for menu in probe), default=0)
    answers = torch.full((len(people), len(probe), widest), -1, dtype=torch.int64)
    for place, person in enumerate(people):
        for number, tiers in enumerate(person.answers):
            answers[place, number, : len(tiers)] = torch.tensor(tiers, dtype=torch.int64)
    return answers


def _padded(rows: Sequence[tuple[int, ...]]) -> Tensor:
    """Return rows of unlike length as one tensor, -1 behind the short ones."""
    return pad_sequence([torch.tensor(row, dtype=torch.int64) for row in rows], batch_first=True, padding_value=-1)


def _indices(rankings: Sequence[Ranking], split: Split) -> Tensor:
    return torch.tensor([i for i, ranking in enumerate(rankings) if ranking.split == split], dtype=torch.int64)
