"""What rankings look like: judgments of two or more responses, complete, partial or with ties, and a client's shard."""

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
class Ranking:
    """One judgment: some responses to a prompt, in tiers.

    The order within a tier is not told: two responses that tie are in one tier, and so are all that a top-t judgment
    or a choice of the best leaves unranked, in the last.

    Parameters
    ----------
    prompt : str
    responses : tuple of str, length S >= 2
        Not empty, all different.
    tiers : tuple of int, length S
        0 is best; without gaps, and at least two of them: a judgment in which all tie says nothing.
    split : {"train", "test"}
        ``test`` judgments are only ever predicted.
    group : str
        What results are reported by: an annotator's type in worlds where it is known, a criterion elsewhere.
    annotator : str or None
        Who judged; None where the data set does not say.
    """

    prompt: str
    responses: tuple[str, ...]
    tiers: tuple[int, ...]
    split: Split
    group: str
    annotator: str | None = None


@dataclass(frozen=True)
class Menu:
    """A prompt with responses that everybody may know.

    Parameters
    ----------
    prompt : str
    responses : tuple of str
    """

    prompt: str
    responses: tuple[str, ...]


@dataclass(frozen=True)
class RankingSet:
    """Everything a ranking source delivers.

    Parameters
    ----------
    rankings : sequence of Ranking
        In file order.
    dropped : mapping from cleaning rule to count
    types : mapping from annotator to str
        Their true types, where a world knows them; read by measures and by arms that are marked as upper bounds.
    probe : sequence of Menu
        The public menus that annotators were asked about before anything is trained.
    answers : mapping from annotator to sequence of tuple of int
        Tiers that an annotator gave the responses of each menu of the probe, in its order.
    """

    rankings: Sequence[Ranking]
    dropped: Mapping[str, int] = field(default_factory=dict)
    types: Mapping[str, str] = field(default_factory=dict)
    probe: Sequence[Menu] = ()
    answers: Mapping[str, Sequence[tuple[int, ...]]] = field(default_factory=dict)


class RankingSource(DataSource):
    """Where rankings come from; one subclass a data set, a frozen dataclass of its settings.

    Attributes
    ----------
    prompt_tail : int
        How many characters of a prompt's end the encoder reads.
    """

    kind = Kind.RANKINGS
    prompt_tail: int

    def federate(
        self,
        partition: RankingPartition,
        encoder: Encoder,
        streams: Streams,
        cache: Path | None,
        progress: ProgressFactory,
    ) -> FederatedData:
        """Load the rankings, lay them out over clients and encode the responses."""
        from fedalign.data.ranking_data import federate_rankings

        return federate_rankings(self, partition, encoder, streams, cache, progress)

    @abstractmethod
    def load(self, streams: Streams) -> RankingSet:
        """Read and clean the rankings.

        Raises
        ------
        UserError
            If the file is missing or malformed.
        """

    def vectors(self, rankings: Sequence[Ranking]) -> Sequence[torch.Tensor] | None:
        """Return a vector for every response of every ranking, shape (S, dim) each, or None to have texts encoded."""
        return None


@dataclass(frozen=True)
class Annotator:
    """Somebody who judged, before encoding.

    Parameters
    ----------
    name : str
    type : str or None
        The true type, where it is known.
    rankings : tuple of Ranking
        Training and held-out judgments.
    answers : tuple of tuple of int
        Tiers given to the probe's menus; empty where there is none.
    """

    name: str
    type: str | None
    rankings: tuple[Ranking, ...]
    answers: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class RankingClient:
    """One client before encoding: an annotator on a device, or a silo of annotators.

    Parameters
    ----------
    name : str
    role : Role
    annotators : tuple of Annotator
    """

    name: str
    role: Role
    annotators: tuple[Annotator, ...]


class RankingPartition(Layout):
    """How annotators are laid out over clients; one subclass a rule, a frozen dataclass of its settings."""

    kind = Kind.RANKINGS

    @abstractmethod
    def split(self, rankings: RankingSet, streams: Streams) -> tuple[Sequence[RankingClient], Mapping[str, int]]:
        """Return the clients, training clients first, and what each documented rule dropped.

        Raises
        ------
        UserError
            If the rankings do not give every client what it needs.
        """


@dataclass(frozen=True, eq=False)
class RankingShard:
    """What a client's phases see: N judgments of P annotators, over menus of at most S responses.

    Compared by identity, so that what is worked out of a shard once can be kept with it.

    Parameters
    ----------
    client : str
    role : Role
    people : tuple of str, length P
    types : tuple of (str or None), length P
        True types, where they are known.
    owner : int64 tensor, shape (N,)
        Who judged: an index into ``people``.
    prompts : tuple of str, length N
        Raw text; stays on the client.
    responses : tuple of tuple of str, length N
    groups : tuple of str, length N
        What each judgment is reported by.
    features : float32 tensor, shape (N, S, dim)
        Encoded (prompt, response); zeros where a menu has fewer than S responses.
    tiers : int64 tensor, shape (N, S)
        0 is best; -1 where there is no response.
    train, test : int64 tensors
        Disjoint indices of judgments, together all N.
    probe : int64 tensor, shape (P, M, R)
        Tiers that each annotator gave the R responses of M public menus; -1 where a menu has fewer. M is 0 where
        nobody was asked.
    """

    client: str
    role: Role
    people: tuple[str, ...]
    types: tuple[str | None, ...]
    owner: torch.Tensor
    prompts: tuple[str, ...]
    responses: tuple[tuple[str, ...], ...]
    groups: tuple[str, ...]
    features: torch.Tensor
    tiers: torch.Tensor
    train: torch.Tensor
    test: torch.Tensor
    probe: torch.Tensor


__all__ = [
    "Annotator",
    "Menu",
    "Ranking",
    "RankingClient",
    "RankingPartition",
    "RankingSet",
    "RankingShard",
    "RankingSource",
    "Role",
    "Split",
]
