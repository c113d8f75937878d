"""Episodes of a training step: for some people, a context to infer the latent from and other judgments to predict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedalign.data.pairs import Judgments
from fedalign.errors import UserError
from fedalign.methods.pairs import Batch, batch_of, draw_disjoint


@dataclass(frozen=True)
class Drawn:
    """The episodes of one step, E in number.

    Parameters
    ----------
    context, target : Batch
        Shapes (E, C) and (E, T); no judgment is in both.
    rows : dict from person to slice
        Which episodes are whose.
    """

    context: Batch
    target: Batch
    rows: dict[str, slice]


@dataclass(frozen=True)
class Pick:
    """One person's episodes of a step, as indices.

    Parameters
    ----------
    judgments : Judgments
    index : int64 Tensor, shape (E, context + targets)
        Of judgments; the context comes first.
    context : int
    """

    judgments: Judgments
    index: Tensor
    context: int


@dataclass(frozen=True)
class EpisodePlan:
    """How many episodes a step has and how large they are; the ``episodes`` block of a method.

    Parameters
    ----------
    count : int
        Episodes a step; a silo's are spread over that many of its people, drawn at random.
    min_context, max_context : int
        The size of a step's contexts is drawn uniformly from this range, and cut to what leaves a target.
    targets : int
        Judgments to predict in an episode, at most.
    """

    count: Annotated[int, Field(ge=1)]
    min_context: Annotated[int, Field(ge=1)]
    max_context: Annotated[int, Field(ge=1)]
    targets: Annotated[int, Field(ge=1)]

    def __post_init__(self) -> None:
        """Check the order of the bounds."""
        if self.max_context < self.min_context:
            raise UserError(
                f"method.episodes.max_context={self.max_context} is below method.episodes.min_context="
                f"{self.min_context}; raise it"
            )

    def draw(self, people: Sequence[Judgments], generator: torch.Generator) -> Drawn:
        """Return a step's episodes."""
        contexts, targets, rows = [], [], {}
        start = 0
        for pick in self.picks(people, generator):
            contexts.append(batch_of(pick.judgments, pick.index[:, : pick.context], generator))
            targets.append(batch_of(pick.judgments, pick.index[:, pick.context :], generator))
            rows[pick.judgments.person] = slice(start, start + len(pick.index))
            start += len(pick.index)
        return Drawn(join_batches(contexts), join_batches(targets), rows)

    def picks(self, people: Sequence[Judgments], generator: torch.Generator) -> Iterator[Pick]:
        """Yield which judgments a step shows, person by person; all have the same context and target sizes."""
        chosen = self._people(people, generator)
        fewest = min(len(judgments.train) for judgments in chosen)
        context = min(self._context_size(generator), fewest - 1)
        target = min(self.targets, fewest - context)
        for place, judgments in enumerate(chosen):
            count = self.count // len(chosen) + (place < self.count % len(chosen))
            yield Pick(judgments, draw_disjoint(judgments.train, count, context, target, generator), context)

    def contexts(self, judgments: Judgments, count: int, generator: torch.Generator) -> Batch:
        """Return ``count`` random contexts of one person, of the largest size that training uses."""
        size = min(self.max_context, len(judgments.train))
        return batch_of(judgments, draw_disjoint(judgments.train, count, size, 0, generator), generator)

    def _people(self, people: Sequence[Judgments], generator: torch.Generator) -> list[Judgments]:
        if len(people) <= self.count:
            return list(people)
        return [people[i] for i in torch.randperm(len(people), generator=generator)[: self.count].tolist()]

    def _context_size(self, generator: torch.Generator) -> int:
        return int(torch.randint(self.min_context, self.max_context + 1, (), generator=generator))


def join_batches(batches: Sequence[Batch]) -> Batch:
    """Return the episodes of all batches as one; all have as many judgments an episode."""
    if len(batches) == 1:
        return batches[0]
    first, second, preferred = zip(*((b.first, b.second, b.preferred) for b in batches), strict=True)
    return Batch(torch.cat(first), torch.cat(second), torch.cat(preferred))
