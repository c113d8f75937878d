"""Prototypes of a variational selector: their loss, and which prototype a person is pulled to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from fedalign.contribution import State
from fedalign.data.names import suggest
from fedalign.data.pairs import Judgments
from fedalign.errors import UserError
from fedalign.methods.clustering import balanced_kmeans, match
from fedalign.methods.latent_prior import BANK, bank_means, person_id
from fedalign.objectives.prototypes import orthogonal_prototypes, orthogonality, prototype_pull
from fedalign.rng import Streams

LABEL = "label/"
_KMEANS_SEED = 42
_KMEANS_ITERATIONS = 50


@dataclass(frozen=True)
class Prototypes:
    """The orthogonal prototype loss (FedVPA-GP, Eq. 9 and 10); the ``prototypes`` block of a method.

    Parameters
    ----------
    count : int
        M, the number of prototypes; at most the latent's dimension.
    scale : float
        Length of a prototype.
    pull : float
        Weight lambda of the distance of latents from their prototype.
    orthogonality : float
        Weight gamma of the prototypes' own orthogonality.
    labels : {"clusters", "nearest", "category"}
        Whose prototype is whose: balanced k-means on the server over the bank of posteriors; the prototype with the
        largest inner product; or the true category, which is an upper bound and no method.
    categories : tuple of str or None
        The categories in the order of their prototypes, for ``category``.
    warmup : int
        Rounds without the pull: before a latent says anything, its cluster is chance.
    """

    count: Annotated[int, Field(ge=1)]
    scale: Annotated[float, Field(gt=0)]
    pull: Annotated[float, Field(ge=0)]
    orthogonality: Annotated[float, Field(ge=0)]
    labels: Literal["clusters", "nearest", "category"]
    categories: tuple[str, ...] | None
    warmup: Annotated[int, Field(ge=0)]

    def __post_init__(self) -> None:
        """Check that true categories are there where they are wanted."""
        if self.labels == "category" and (self.categories is None or len(self.categories) != self.count):
            raise UserError(
                f"method.prototypes.categories={self.categories}: labels=category needs one category for each of "
                f"{self.count} prototypes; list them"
            )

    def initial(self, dim: int, streams: Streams) -> Tensor:
        """Return random orthogonal prototypes, shape (M, dim)."""
        if self.count > dim:
            raise UserError(
                f"method.prototypes.count={self.count} is above model.latent={dim}: that many orthogonal prototypes do "
                "not fit; lower the one or raise the other"
            )
        return orthogonal_prototypes(self.count, dim, self.scale, streams.torch("prototypes"))

    def label(self, state: State, judgments: Judgments) -> int | None:
        """Return a person's prototype, or None where the latent itself must choose."""
        if self.labels == "category" and self.categories is not None:
            if judgments.group not in self.categories:
                raise UserError(
                    f"method.prototypes.categories: {judgments.group!r} is not among them"
                    f"{suggest(judgments.group, self.categories)}"
                )
            return self.categories.index(judgments.group)
        known = state.get(f"{LABEL}{person_id(judgments.person)}")
        return None if known is None else int(known)

    def labels_of(self, state: State) -> State:
        """Return everybody's label from the bank of posteriors; nothing while it holds fewer than M people."""
        ids = sorted(int(name.removeprefix(BANK)) for name in state if name.startswith(BANK))
        if self.labels != "clusters" or len(ids) < self.count:
            return {}
        clusters = balanced_kmeans(bank_means(state, ids), self.count, _KMEANS_SEED, _KMEANS_ITERATIONS)
        # Clusters have no names of their own: each takes the prototype that it lies towards.
        names = match(clusters.centres, state["prototypes"])
        return {f"{LABEL}{i}": names[label] for i, label in zip(ids, clusters.labels, strict=True)}

    def loss(
        self, z: Tensor, prototypes: Tensor, people: Mapping[str, tuple[slice, int | None]], position: float
    ) -> Tensor:
        """Return ``pull * mean distance + orthogonality * deviation``.

        Parameters
        ----------
        z : Tensor, shape (E, d)
        prototypes : Tensor, shape (M, d)
        people : mapping from person to (rows of z, label)
        position : float
            Rounds since the start.
        """
        apart = self.orthogonality * orthogonality(prototypes, self.scale)
        if position < self.warmup:
            return apart
        labels = (z.detach() @ prototypes.detach().T).argmax(1)
        for rows, label in people.values():
            if label is not None:
                labels[rows] = label
        return self.pull * prototype_pull(z, prototypes, labels).mean() + apart
