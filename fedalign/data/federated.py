"""What every data set gives a federation, whatever its judgments look like: named clients, and a shard for each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from fedalign.data.progress import ProgressFactory
from fedalign.rng import Streams

if TYPE_CHECKING:
    from fedalign.data.schema import Question


class Role(StrEnum):
    """What a client does in a federation."""

    TRAIN = "train"
    UNSEEN = "unseen"


class Kind(StrEnum):
    """What judgments look like; data, partition and method of a run are of one kind."""

    SURVEY = "survey"
    PAIRS = "pairs"
    CORPUS = "corpus"
    RANKINGS = "rankings"


@dataclass(frozen=True)
class ClientInfo:
    """What the server may know of a client.

    Parameters
    ----------
    name : str
    role : Role
    stages : tuple of str
        Parts of its data, by the name of the stage that reads them; empty takes part in all.
    """

    name: str
    role: Role
    stages: tuple[str, ...] = ()


class Layout(ABC):
    """How judgments are laid out over clients (config group ``partition``); one base class a kind of judgment.

    Attributes
    ----------
    kind : Kind
        What judgments it lays out.
    disjoint : bool
        Whether no user's data are read by more than one stage.
    """

    kind: ClassVar[Kind]
    disjoint: bool = False


class FederatedData(ABC):
    """The clients that a process can host, and their shards.

    Attributes
    ----------
    dropped : mapping from str to int
        How many records each documented cleaning rule removed.
    questionnaire : mapping from question id to int
        Of a survey: how many answers each question offers, whether or not somebody here answered it. Public.
    questions : mapping from question id to Question
        Of a survey: the same questions' texts and options, in file order. Public.
    """

    dropped: Mapping[str, int]
    questionnaire: Mapping[str, int] = MappingProxyType({})
    questions: Mapping[str, Question] = MappingProxyType({})

    @property
    @abstractmethod
    def clients(self) -> Sequence[ClientInfo]:
        """All clients, training clients first."""

    @abstractmethod
    def shard(self, client: str) -> Any:
        """Return a client's shard, as its method's phases expect it."""


class DataSource(ABC):
    """Where judgments come from: one subclass a data set, a frozen dataclass of its settings (config group ``data``).

    Attributes
    ----------
    kind : Kind
        What its judgments look like.
    name : str
        Name in reports.
    """

    kind: ClassVar[Kind]
    name: str

    @abstractmethod
    def federate(
        self, partition: Any, encoder: Any, streams: Streams, cache: Path | None, progress: ProgressFactory
    ) -> FederatedData:
        """Load the data, lay it out over clients and encode it.

        Parameters
        ----------
        partition, encoder
            Of the kinds that this data set's judgments need.
        streams : Streams
        cache : Path or None
            Directory of cached embeddings; None for the default.
        progress : ProgressFactory

        Raises
        ------
        UserError
            If the data cannot be read, are malformed, or do not fit the partition.
        """
