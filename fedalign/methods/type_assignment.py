"""The E-step: which type every annotator belongs to, and what every judgment weighs in a type's training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedalign.errors import UserError
from fedalign.objectives.em import one_hot_of, per_annotator, per_judgment_responsibilities, responsibilities_of


@dataclass(frozen=True)
class Evidence:
    """What a client knows of its annotators' types, P annotators and K types.

    Parameters
    ----------
    log_likelihood : Tensor, shape (K, n)
        Of the judgments that tell types.
    owner : int64 Tensor, shape (n,)
        Who judged each.
    log_prior : Tensor, shape (K,)
    round : int
    clusters : int64 Tensor, shape (P,), or None
        Which cluster of the start each annotator is in.
    types : sequence of (str or None), length P
        True types; for upper bounds only.
    """

    log_likelihood: Tensor
    owner: Tensor
    log_prior: Tensor
    round: int
    clusters: Tensor | None
    types: Sequence[str | None]

    def by_annotator(self) -> Tensor:
        """Return each annotator's log-likelihood, summed over its judgments, shape (K, P)."""
        return per_annotator(self.log_likelihood, self.owner, len(self.types))


class TypeAssignment(ABC):
    """Who trains which type.

    Attributes
    ----------
    reads_likelihood : bool
        Whether judgments tell types; where they do not, none need be looked at.
    needs_clusters : bool
        Whether types are told by the clusters of the start alone, in every round.
    per_judgment : bool
        Whether a type weighs each judgment by itself, not by who judged.
    """

    reads_likelihood: bool = True
    needs_clusters: bool = False
    per_judgment: bool = False

    def check(self, types: int) -> None:  # noqa: B027 - most serve any number
        """Refuse a number of types that the assignment cannot serve.

        Raises
        ------
        UserError
            Naming the setting and the fix.
        """

    def check_people(self, types: Sequence[str | None]) -> None:  # noqa: B027 - most need to know nothing of people
        """Refuse annotators of true types that the assignment does not know.

        Raises
        ------
        UserError
            Naming the types and the fix.
        """

    @abstractmethod
    def annotators(self, evidence: Evidence) -> Tensor:
        """Return every annotator's share in each type, shape (K, P); columns sum to 1."""

    def judgments(self, fitted: Tensor, owner: Tensor, people: int) -> Tensor:
        """Return every trained judgment's weight in each type, where they are weighed one by one.

        Parameters
        ----------
        fitted : Tensor, shape (K, n)
            Log-likelihood of the judgments that are trained on.
        owner : int64 Tensor, shape (n,)
        people : int
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Posterior(TypeAssignment):
    """EM-DPO: the posterior of an annotator's type, from all of its judgments together.

    ``softmax_k(log prior_k + tau * sum_j log PL_k(judgment j))``, with tau rising while types are hardly trained, since
    the sum over many judgments makes certain of what little they have learnt.

    Parameters
    ----------
    temper : float
        tau of the first round, in (0, 1].
    temper_rounds : int
        Rounds in which tau rises to 1, in equal steps.
    """

    temper: Annotated[float, Field(gt=0, le=1)]
    temper_rounds: Annotated[int, Field(ge=1)]

    def annotators(self, evidence: Evidence) -> Tensor:
        """Return the tempered posterior."""
        risen = min(1.0, max(0.0, (evidence.round - 1) / self.temper_rounds))
        tau = self.temper + (1 - self.temper) * risen
        return responsibilities_of(evidence.by_annotator(), evidence.log_prior, tau)


@dataclass(frozen=True)
class Hardest(TypeAssignment):
    """IFCA: every annotator is of the type that its judgments are likeliest under (Ghosh et al. 2020)."""

    def annotators(self, evidence: Evidence) -> Tensor:
        """Return one-hot columns."""
        return one_hot_of(evidence.by_annotator())


@dataclass(frozen=True)
class PerJudgment(TypeAssignment):
    """FedEM: every judgment has a posterior of its own, under its annotator's mixture (Marfoq et al. 2021).

    Parameters
    ----------
    iterations : int
        Of EM on the annotator's mixture weights, from equal ones.
    """

    iterations: Annotated[int, Field(ge=1)]
    per_judgment = True

    def annotators(self, evidence: Evidence) -> Tensor:
        """Return the annotators' mixture weights."""
        found = per_judgment_responsibilities(
            evidence.log_likelihood, evidence.owner, len(evidence.types), self.iterations
        )
        return found[1]

    def judgments(self, fitted: Tensor, owner: Tensor, people: int) -> Tensor:
        """Return each judgment's posterior."""
        return per_judgment_responsibilities(fitted, owner, people, self.iterations)[0]


@dataclass(frozen=True)
class Clusters(TypeAssignment):
    """Cluster-DPO: annotators stay in the clusters of the start."""

    reads_likelihood = False
    needs_clusters = True

    def annotators(self, evidence: Evidence) -> Tensor:
        """Return one-hot columns."""
        return cluster_shares(evidence)


@dataclass(frozen=True)
class KnownTypes(TypeAssignment):
    """An upper bound: the true types are told.

    Parameters
    ----------
    names : tuple of str
        The true types, one a learnt type.
    """

    names: tuple[str, ...]
    reads_likelihood = False

    def check(self, types: int) -> None:
        """Refuse another number of names than of types."""
        if len(self.names) != types:
            raise UserError(
                f"method.assignment.names={list(self.names)} names {len(self.names)} types, method.types={types}; "
                "they must be as many"
            )

    def check_people(self, types: Sequence[str | None]) -> None:
        """Refuse annotators of other types, or of none that is known."""
        strange = sorted({str(name) for name in types if name not in self.names})
        if strange:
            raise UserError(
                f"method.assignment.names={list(self.names)}: annotators here are of type {', '.join(strange)}; name "
                "all true types, or take method=emdpo where they are not known"
            )

    def annotators(self, evidence: Evidence) -> Tensor:
        """Return one-hot columns."""
        places = torch.tensor([self.names.index(str(name)) for name in evidence.types])
        return _one_hot(places, len(self.names))


@dataclass(frozen=True)
class Together(TypeAssignment):
    """One type for all: federated DPO."""

    reads_likelihood = False

    def check(self, types: int) -> None:
        """Refuse several types, which would all be trained alike."""
        if types != 1:
            raise UserError(f"method.assignment=Together has one type, method.types={types}; set method.types=1")

    def annotators(self, evidence: Evidence) -> Tensor:
        """Return ones."""
        return torch.ones(1, len(evidence.types))


def cluster_shares(evidence: Evidence) -> Tensor:
    """Return one-hot columns of the annotators' clusters, shape (K, P); of one type alone there are no clusters."""
    if len(evidence.log_prior) == 1:
        return torch.ones(1, len(evidence.types))
    assert evidence.clusters is not None
    return _one_hot(evidence.clusters, len(evidence.log_prior))


def _one_hot(places: Tensor, types: int) -> Tensor:
    return torch.nn.functional.one_hot(places, types).T.float()
