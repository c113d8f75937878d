"""What survey data look like: public questions, private answers, and a client's encoded shard."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from fedalign.data.federated import DataSource, FederatedData, Kind, Layout, Role
from fedalign.data.progress import ProgressFactory
from fedalign.rng import Streams


@dataclass(frozen=True)
class Question:
    """One survey question with its options; public knowledge."""

    text: str
    options: tuple[str, ...]

    @property
    def id(self) -> str:
        """A short identifier that depends on text and options alone, so that sites agree on it without talking."""
        content = "\x1f".join((self.text, *self.options))
        return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


Distribution = npt.NDArray[np.float64]
"""Shares of one group over one question's options: shape (options,), non-negative, sums to 1."""


@dataclass(frozen=True)
class Survey:
    """Everything a survey source delivers.

    Parameters
    ----------
    questions : mapping from question id to Question
        In file order.
    answers : mapping from group to (mapping from question id to Distribution)
        Groups in order of first appearance, questions in file order. The private part.
    dropped : mapping from cleaning rule to count
        How many rows or options each documented rule removed.
    """

    questions: Mapping[str, Question]
    answers: Mapping[str, Mapping[str, Distribution]]
    dropped: Mapping[str, int] = field(default_factory=dict)


class SurveySource(DataSource):
    """Where a survey comes from; one subclass a data set, a frozen dataclass of its settings."""

    kind = Kind.SURVEY

    def federate(
        self,
        partition: Partition,
        encoder: Encoder,
        streams: Streams,
        cache: Path | None,
        progress: ProgressFactory,
    ) -> FederatedData:
        """Load the survey, lay it out over clients and encode its questions."""
        from fedalign.data.survey_data import federate_survey

        return federate_survey(self, partition, encoder, streams, cache, progress)

    @abstractmethod
    def load(self, streams: Streams) -> Survey:
        """Read and clean the survey.

        Raises
        ------
        UserError
            If the file is missing or malformed.
        """


@dataclass(frozen=True)
class ClientAnswers:
    """One client's answers before encoding.

    Parameters
    ----------
    name : str
        Unique in the federation.
    role : Role
        ``TRAIN`` takes part in training; ``UNSEEN`` only answers evaluations.
    answers : mapping from group to (mapping from question id to Distribution)
        One group for a partition by group, several for mixed partitions.
    test : mapping from group to set of question ids
        The questions of each group that training must never touch. Empty sets for unseen clients.
    """

    name: str
    role: Role
    answers: Mapping[str, Mapping[str, Distribution]]
    test: Mapping[str, frozenset[str]]


class Partition(Layout):
    """How answers are laid out over clients; one subclass a rule, a frozen dataclass of its settings."""

    kind = Kind.SURVEY

    @abstractmethod
    def split(self, survey: Survey, streams: Streams) -> Sequence[ClientAnswers]:
        """Return the clients, training clients first, each with its answers and its held-out questions."""


class Encoder(ABC):
    """Text to vectors; one subclass a kind of model, a frozen dataclass of its settings."""

    @property
    @abstractmethod
    def dim(self) -> int:
        """Length of a vector, known without encoding anything."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Identifies the vectors this encoder makes (model content, template, pooling): the key of the disk cache."""

    @abstractmethod
    def texts(self, question: Question) -> list[str]:
        """Return one text per option of ``question``, as they are encoded."""

    @abstractmethod
    def encode(self, texts: Sequence[str], progress: Callable[[int], None]) -> npt.NDArray[np.float32]:
        """Return vectors, shape (len(texts), dim); calls ``progress(n)`` after every n texts done."""


@dataclass(frozen=True)
class GroupJudgments:
    """One group's encoded answers on one client: Q questions, P = sum of their option counts points.

    Parameters
    ----------
    group : str
    question_ids : tuple of str, length Q
    offsets : int64 tensor, shape (Q + 1,)
        Question q owns points ``offsets[q]:offsets[q+1]``.
    features : float32 tensor, shape (P, dim)
        Encoded (question, option) pairs.
    shares : float32 tensor, shape (P,)
        The group's shares; sum to 1 within each question.
    train, test : int64 tensors
        Disjoint question indices. ``test`` is never used in training; for unseen clients ``train`` holds
        every question and ``test`` is empty.
    """

    group: str
    question_ids: tuple[str, ...]
    offsets: torch.Tensor
    features: torch.Tensor
    shares: torch.Tensor
    train: torch.Tensor
    test: torch.Tensor


@dataclass(frozen=True)
class SurveyShard:
    """What a client's phases see: its groups' encoded judgments."""

    client: str
    role: Role
    groups: tuple[GroupJudgments, ...]


__all__ = [
    "ClientAnswers",
    "Distribution",
    "Encoder",
    "GroupJudgments",
    "Partition",
    "Question",
    "Role",
    "Survey",
    "SurveyShard",
    "SurveySource",
]
