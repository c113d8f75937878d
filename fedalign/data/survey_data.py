"""A survey laid out over clients: the federated form of every survey source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from fedalign.data.embed import EmbeddingCache, build_shard, default_cache_directory, embed
from fedalign.data.federated import ClientInfo, FederatedData
from fedalign.data.progress import ProgressFactory
from fedalign.data.recent import Recent
from fedalign.data.schema import ClientAnswers, Encoder, Partition, Question, SurveyShard, SurveySource
from fedalign.rng import Streams


@dataclass(frozen=True)
class SurveyData(FederatedData):
    """Clients with survey answers.

    Parameters
    ----------
    answers : mapping from client to ClientAnswers
        Training clients first.
    questions : mapping from question id to Question
    vectors : mapping from question id to float32 Tensor, shape (options, dim)
    dropped : mapping from cleaning rule to count
    questionnaire : mapping from question id to int
    """

    answers: Mapping[str, ClientAnswers]
    # Without a default, which the base class has.
    questions: Mapping[str, Question] = field()
    vectors: Mapping[str, Tensor]
    dropped: Mapping[str, int]
    questionnaire: Mapping[str, int] = field(default_factory=dict)
    _shards: Recent[SurveyShard] = field(default_factory=Recent)

    @property
    def clients(self) -> Sequence[ClientInfo]:
        """All clients, training clients first."""
        return [ClientInfo(client.name, client.role) for client in self.answers.values()]

    def shard(self, client: str) -> SurveyShard:
        """Return a client's encoded judgments; made when asked for, and kept for a while."""
        return self._shards.get(client, lambda: build_shard(self.answers[client], self.vectors))


def federate_survey(
    source: SurveySource,
    partition: Partition,
    encoder: Encoder,
    streams: Streams,
    cache: Path | None,
    progress: ProgressFactory,
) -> SurveyData:
    """Load, partition and encode a survey; only questions that some client answered are encoded."""
    survey = source.load(streams)
    clients = partition.split(survey, streams)
    answered = {qid for client in clients for answers in client.answers.values() for qid in answers}
    encoded = [question for qid, question in survey.questions.items() if qid in answered]
    store = EmbeddingCache(default_cache_directory() if cache is None else cache)
    vectors = embed(encoded, encoder, store, progress)
    asks = {qid: len(question.options) for qid, question in survey.questions.items()}
    return SurveyData({client.name: client for client in clients}, survey.questions, vectors, survey.dropped, asks)
