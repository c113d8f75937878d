"""What alignment data look like: users' texts, preferred texts and prompts, laid out by the stage that reads them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fedalign.data.federated import DataSource, FederatedData, Kind, Layout, Role
from fedalign.data.progress import ProgressFactory
from fedalign.data.schema import Encoder
from fedalign.rng import Streams

Split = Literal["train", "test"]

SFT, REWARD, RL = "sft", "reward", "rl"
STAGES = (SFT, REWARD, RL)
"""Stages of alignment: imitation of texts, a reward model from preferred texts, reinforcement learning on prompts."""


@dataclass(frozen=True)
class Example:
    """One record of a user.

    Parameters
    ----------
    user : str
        Whose it is.
    group : str
        What metrics are kept by.
    prompt : str
        What was to be continued; may be empty.
    response : str
        How somebody continued it, or the continuation that was preferred. It brings the white space that parts it from
        the prompt: the two together are the text.
    rejected : str or None
        What it was preferred to; None where nobody compared.
    split : {"train", "test"}
        ``test`` is for evaluations alone.
    """

    user: str
    group: str
    prompt: str
    response: str
    rejected: str | None
    split: Split


@dataclass(frozen=True)
class Corpus:
    """Everything that a source delivers.

    Parameters
    ----------
    examples : sequence of Example
    dropped : mapping from rule to count
        How many records each documented cleaning rule removed.
    """

    examples: Sequence[Example]
    dropped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class CorpusShard:
    """What a client's phases see.

    Parameters
    ----------
    client : str
    role : Role
    stages : mapping from stage to tuple of Example
        What each stage may learn from; a stage that is not there, or empty, does not ask this client.
    test : tuple of Example
        What only evaluations read.
    """

    client: str
    role: Role
    stages: Mapping[str, tuple[Example, ...]]
    test: tuple[Example, ...]


class CorpusSource(DataSource):
    """Where texts come from; one subclass a data set, a frozen dataclass of its settings."""

    kind = Kind.CORPUS

    def federate(
        self,
        partition: CorpusPartition,
        encoder: Encoder,
        streams: Streams,
        cache: Path | None,
        progress: ProgressFactory,
    ) -> FederatedData:
        """Load the texts and lay them out over clients; nothing is encoded."""
        from fedalign.data.corpus_data import federate_corpus

        return federate_corpus(self, partition, streams)

    @abstractmethod
    def load(self, streams: Streams) -> Corpus:
        """Read and clean the texts.

        Raises
        ------
        UserError
            If the data are missing or malformed.
        """


class CorpusPartition(Layout, ABC):
    """How users' texts are laid out over clients and stages; one subclass a rule."""

    kind = Kind.CORPUS

    @abstractmethod
    def split(self, corpus: Corpus, streams: Streams) -> tuple[Sequence[CorpusShard], Mapping[str, int]]:
        """Return the clients, training clients first, and how many records each rule left out.

        Raises
        ------
        UserError
            If the corpus does not fit the settings.
        """
