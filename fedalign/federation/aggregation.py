"""How the replies of a round become one: their sum, or what a few wrong ones cannot move (median, trimmed mean, Krum).

A robust form looks at each client's own reply, every client counting alike: what it says that it weighs is not used.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedalign.contribution import DELTA, WEIGHT, Contribution
from fedalign.errors import UserError
from fedalign.metrics.record import METRIC
from fedalign.template import Template

LARGEST = 1e30
"""Beyond this no number is believed: sums and squares of many such numbers would leave float64."""

FEWEST_TERMS, MOST_TERMS = 1e-9, 1e15
"""Within these a metric's denominator is believed."""


@dataclass(frozen=True)
class Aggregation(ABC):
    """What a reply may hold, and how replies become one; the ``federation/aggregation`` config group.

    Parameters
    ----------
    client_weight : float or None
        Most that one client may weigh in a mean; None believes what clients say. Where weights do not depend on data a
        phase knows them (`Phase.client_weight`), and holds clients to them by itself.
    client_norm : float or None
        Longest change of the model (L2, over all tensors together) that one client may ask for. A reply that goes
        further is left out.
    client_scalars : int
        Most named numbers of one client.

    Attributes
    ----------
    individual : bool
        Whether each client's own reply is needed.
    """

    individual: ClassVar[bool] = True

    client_weight: Annotated[float, Field(gt=0)] | None
    client_norm: Annotated[float, Field(gt=0)] | None
    client_scalars: Annotated[int, Field(ge=1)]

    @property
    @abstractmethod
    def fewest(self) -> int:
        """Replies without which a round is not applied."""

    @abstractmethod
    def centre(self, rows: Tensor) -> Tensor:
        """Return what stands for all clients' changes, shape (size,); ``rows`` is float64 of shape (clients, size)."""

    def check_cohort(self, clients: int) -> None:
        """Refuse cohorts in which the aggregation would protect against nobody.

        Raises
        ------
        UserError
            Naming what is needed.
        """
        if self.individual and clients < self.fewest:
            raise UserError(
                f"federation/aggregation: rounds of {clients} clients are too few for {type(self).__name__}, which "
                f"needs {self.fewest}; ask more clients (federation/sampler), or choose another aggregation"
            )

    def check(self, clients: int, contribution: Contribution, known_weight: float | None) -> None:
        """Refuse a reply of ``clients`` clients that holds more than they can have.

        Parameters
        ----------
        clients : int
        contribution : Contribution
        known_weight : float or None
            What every client of the phase weighs, where that is known.

        Raises
        ------
        ValueError
            If there are more numbers than there could be, one is beyond ``LARGEST``, a metric's count is none, a weight
            is larger than allowed, or the change of the model is longer.
        """
        if len(contribution.scalars) > clients * self.client_scalars:
            raise ValueError(f"{len(contribution.scalars)} named numbers of {clients} clients")
        _check_numbers(contribution)
        weight = contribution.scalars.get(WEIGHT, 0.0)
        limits = [limit for limit in (self.client_weight, known_weight) if limit is not None]
        if limits and not weight <= clients * min(limits) * (1 + 1e-6):
            raise ValueError(f"a weight of {weight:g} over {clients} clients, each of at most {min(limits):g}")
        if self.client_norm is None:
            return
        deltas = Contribution({name: t for name, t in contribution.tensors.items() if name.startswith(DELTA)})
        norm = deltas.norm()
        if not norm <= weight * self.client_norm * (1 + 1e-6):
            raise ValueError(
                f"a change of norm {norm:g} at weight {weight:g}, each client's at most {self.client_norm:g}"
            )

    def check_phase(self, phase: str, template: Template | None) -> None:
        """Refuse a phase that adds up anything but changes of a model: what is robust of other sums is not known.

        Raises
        ------
        UserError
            Naming the phase.
        """
        others = [] if template is None else [name for name in template.tensors if not name.startswith(DELTA)]
        if self.individual and (template is None or others):
            what = f"{others[0]!r}" if others else "sums whose names depend on the data"
            raise UserError(
                f"federation/aggregation={type(self).__name__}: phase {phase!r} adds up {what}, which no median can "
                f"stand "
                "for; choose a method of model changes alone (method.prior=none of method=pluralllm), or "
                "federation/aggregation=mean"
            )

    def combine(self, replies: Sequence[Contribution], total: Contribution) -> Contribution:
        """Return what takes the place of a total.

        Parameters
        ----------
        replies : sequence of Contribution
            Each client's, of deltas and a weight.
        total : Contribution
            Their sum; its metrics are kept.
        """
        names = sorted({name for reply in replies for name in reply.tensors})
        shapes = {name: tensor.shape for reply in replies for name, tensor in reply.tensors.items()}
        rows = torch.stack([_row(reply, names, shapes) for reply in replies])
        number = float(len(replies))
        centre = self.centre(rows) * number
        tensors, start = {}, 0
        for name in names:
            stop = start + math.prod(shapes[name])
            tensors[name] = centre[start:stop].reshape(shapes[name])
            start = stop
        return Contribution(tensors, {**total.scalars, WEIGHT: number})


@dataclass(frozen=True)
class Mean(Aggregation):
    """The mean by weight, of sums alone: what everything else in a federation is made for, and one client can move."""

    individual: ClassVar[bool] = False

    @property
    def fewest(self) -> int:
        """Return 1."""
        return 1

    def centre(self, rows: Tensor) -> Tensor:
        """Return the mean over clients that count alike."""
        return rows.mean(0)

    def combine(self, replies: Sequence[Contribution], total: Contribution) -> Contribution:
        """Return the total."""
        return total


@dataclass(frozen=True)
class Median(Aggregation):
    """The median of each number (Yin et al. 2018); bounded while fewer than half of the clients are wrong."""

    @property
    def fewest(self) -> int:
        """Return 3: of two the median is the mean."""
        return 3

    def centre(self, rows: Tensor) -> Tensor:
        """Return the median, which of an even number is the mean of the two in the middle."""
        ordered = rows.sort(0).values
        return (ordered[(len(rows) - 1) // 2] + ordered[len(rows) // 2]) / 2


@dataclass(frozen=True)
class TrimmedMean(Aggregation):
    """The mean of each number without the largest and the smallest (Yin et al. 2018).

    Parameters
    ----------
    cut : float
        Share of the clients that is left out at each end, rounded down; wrong ones may be as many.
    """

    cut: Annotated[float, Field(gt=0, lt=0.5)]

    @property
    def fewest(self) -> int:
        """Return how many clients there must be for one to be left out at each end."""
        return math.ceil(1 / self.cut - 1e-9)

    def centre(self, rows: Tensor) -> Tensor:
        """Return the mean of what is left."""
        # The slack keeps 0.2 of 5 at 1 and 0.07 of 100 at 7.
        out = int(self.cut * len(rows) + 1e-9)
        return rows.sort(0).values[out : len(rows) - out].mean(0)


@dataclass(frozen=True)
class Krum(Aggregation):
    """The mean of the replies that lie closest to their neighbours (Krum and Multi-Krum, Blanchard et al. 2017).

    Parameters
    ----------
    malicious : int
        Wrong clients that are reckoned with.
    kept : int
        Replies that the mean is taken of; 1 is Krum.
    """

    malicious: Annotated[int, Field(ge=1)]
    kept: Annotated[int, Field(ge=1)]

    @property
    def fewest(self) -> int:
        """Return 2 f + 3, as the theorem asks for, and enough for all that are kept to be right."""
        return max(2 * self.malicious + 3, self.kept + self.malicious)

    def centre(self, rows: Tensor) -> Tensor:
        """Return the mean of the ``kept`` replies with the least sum of squared distances to n - f - 2 others."""
        squared = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").square()
        nearest = squared.fill_diagonal_(math.inf).sort(1).values[:, : len(rows) - self.malicious - 2]
        # A stable sort: of equal scores the first client's reply, whatever the machine.
        chosen = nearest.sum(1).sort(stable=True).indices[: self.kept]
        return rows[chosen].mean(0)


def _row(reply: Contribution, names: Sequence[str], shapes: dict[str, torch.Size]) -> Tensor:
    """Return one client's change as one float64 vector; its weight is taken out, whatever it said that it is."""
    weight = reply.scalars.get(WEIGHT, 0.0)
    parts = [
        reply.tensors[name].double().reshape(-1) / weight
        if name in reply.tensors and weight > 0
        else torch.zeros(math.prod(shapes[name]), dtype=torch.float64)
        for name in names
    ]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)


def _check_numbers(contribution: Contribution) -> None:
    """Refuse numbers that sums could not hold, and counts that no client can have, since means are divided by them.

    Raises
    ------
    ValueError
        Naming the number.
    """
    for name, value in contribution.scalars.items():
        if not abs(value) <= LARGEST:
            raise ValueError(f"{name[:80]}: is {value:g}")
        if name.startswith(METRIC) and name.endswith("|n") and value and not FEWEST_TERMS <= value <= MOST_TERMS:
            raise ValueError(f"{name[:80]}: is {value:g}, which is no count")
    for name, tensor in contribution.tensors.items():
        if tensor.is_floating_point() and tensor.numel():
            # One pass, which NaN and Inf go through as well; a norm takes ten times as long.
            lowest, highest = torch.aminmax(tensor.detach())
            largest = float(torch.maximum(-lowest, highest))
            if not largest <= LARGEST:
                raise ValueError(f"{name[:80]}: holds {largest:g}" if largest > LARGEST else f"{name[:80]}: holds NaN")
