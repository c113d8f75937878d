"""What pairwise preference data look like: judgments of people, people on clients, and a client's encoded shard."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from fedalign.data.federated import DataSource, FederatedData, Kind, Layout, Role
from fedalign.data.progress import ProgressFactory
from fedalign.data.schema import Encoder
from fedalign.rng import Streams

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Pair:
    """One judgment: which of two responses to a prompt was preferred.

    Parameters
    ----------
    prompt, chosen, rejected : str
        Not empty; the two responses differ. For a tie, ``chosen`` is just the first of the two.
    split : {"train", "test"}
        ``test`` judgments are never trained on and never part of a context.
    group : str
        Category of the judgment, such as ``harmless``: what strict partitions keep apart and what results are
        reported by. Methods do not learn from it, but for arms that are marked as upper bounds.
    annotator : str or None
        Who judged; None where the data set does not say.
    tie : bool
        No preference between the two.
    conflict : bool
        Groups are known to disagree on this pair (synthetic worlds only).
    """

    prompt: str
    chosen: str
    rejected: str
    split: Split
    group: str
    annotator: str | None = None
    tie: bool = False
    conflict: bool = False


@dataclass(frozen=True)
class PairSet:
    """Everything a pair source delivers.

    Parameters
    ----------
    pairs : sequence of Pair
        In file order.
    dropped : mapping from cleaning rule to count
        How many records each documented rule removed.
    """

    pairs: Sequence[Pair]
    dropped: Mapping[str, int] = field(default_factory=dict)


class PairSource(DataSource):
    """Where pairs come from; one subclass a data set, a frozen dataclass of its settings.

    Attributes
    ----------
    prompt_tail : int
        How many characters of a prompt's end the encoder reads, so that a long dialogue does not push the
        response out of its window.
    """

    kind = Kind.PAIRS
    prompt_tail: int

    def federate(
        self,
        partition: PairPartition,
        encoder: Encoder,
        streams: Streams,
        cache: Path | None,
        progress: ProgressFactory,
    ) -> FederatedData:
        """Load the pairs, lay them out over clients and encode the responses."""
        from fedalign.data.pair_data import federate_pairs

        return federate_pairs(self, partition, encoder, streams, cache, progress)

    @abstractmethod
    def load(self, streams: Streams) -> PairSet:
        """Read and clean the pairs.

        Raises
        ------
        UserError
            If the file is missing or malformed.
        """


@dataclass(frozen=True)
class Person:
    """A unit with one preference: an annotator, or a client whose judgments are taken for one person's.

    Parameters
    ----------
    name : str
        Unique in the federation.
    group : str
        The category that most of the training judgments have.
    pairs : tuple of Pair
        Training and held-out judgments.
    """

    name: str
    group: str
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class PairClient:
    """One client before encoding: a person on a device, or many people in a silo.

    Parameters
    ----------
    name : str
    role : Role
    people : tuple of Person
    """

    name: str
    role: Role
    people: tuple[Person, ...]


class PairPartition(Layout):
    """How judgments are laid out over people and clients; one subclass a rule, a frozen dataclass of its settings."""

    kind = Kind.PAIRS

    @abstractmethod
    def split(self, pairs: PairSet, streams: Streams) -> tuple[Sequence[PairClient], Mapping[str, int]]:
        """Return the clients, training clients first, and what each documented rule dropped.

        Raises
        ------
        UserError
            If the pairs do not give every client what it needs.
        """


@dataclass(frozen=True)
class Judgments:
    """One person's encoded judgments, J in number.

    Parameters
    ----------
    person, group : str
    prompts : tuple of str, length J
        Raw text; stays on the client.
    categories : tuple of str, length J
        The ``group`` of each judgment.
    features : float32 tensor, shape (J, 2, dim)
        Encoded (prompt, response): the chosen response, then the rejected one.
    lengths : float32 tensor, shape (J, 2)
        Characters of the two responses.
    tie, conflict : bool tensor, shape (J,)
    train, test : int64 tensors
        Disjoint indices of judgments. ``train`` is what a training person learns from, and what contexts are
        drawn from; ``test`` judgments are only ever predicted.
    """

    person: str
    group: str
    prompts: tuple[str, ...]
    categories: tuple[str, ...]
    features: torch.Tensor
    lengths: torch.Tensor
    tie: torch.Tensor
    conflict: torch.Tensor
    train: torch.Tensor
    test: torch.Tensor


@dataclass(frozen=True)
class PairShard:
    """What a client's phases see: its people's encoded judgments.

    Parameters
    ----------
    client : str
    role : Role
    people : tuple of Judgments
    prompt_tail : int
        How many characters of a prompt's end were encoded.
    """

    client: str
    role: Role
    people: tuple[Judgments, ...]
    prompt_tail: int


__all__ = [
    "Judgments",
    "Pair",
    "PairClient",
    "PairPartition",
    "PairSet",
    "PairShard",
    "PairSource",
    "Person",
    "Role",
    "Split",
]
