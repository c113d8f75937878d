"""The algebra of a federation: a client's reply is a bag of named sums, and the server sees only their total."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

State = dict[str, Tensor]
"""Named tensors: what the server broadcasts and what a phase leaves behind."""

DELTA = "delta/"
WEIGHT = "weight"


class NoWeight(ValueError):
    """A total that no mean can be taken of."""


@dataclass(frozen=True)
class Contribution:
    """Named tensors and scalars that are meant to be added.

    A name that one contribution lacks counts as zero there, so contributions with different names add up too.

    Parameters
    ----------
    tensors : mapping from name to Tensor
        Weighted parameter deltas (``delta/<parameter>``), sufficient statistics, histograms.
    scalars : mapping from name to float
        Weights, counts, and the numerators and denominators of metrics.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    scalars: Mapping[str, float] = field(default_factory=dict)

    def __add__(self, other: Contribution) -> Contribution:
        """Return the sum, tensors in float64."""
        return total([self, other])

    def scale(self, factor: float) -> Contribution:
        """Return the contribution with every tensor and scalar multiplied by ``factor``."""
        return Contribution(
            {name: tensor * factor for name, tensor in self.tensors.items()},
            {name: value * factor for name, value in self.scalars.items()},
        )

    def norm(self) -> float:
        """Return the L2 norm over all tensors together, computed in float64; scalars do not count."""
        return math.sqrt(sum(float(t.double().square().sum()) for t in self.tensors.values()))

    def clip(self, bound: float) -> Contribution:
        """Return the contribution with its tensors shrunk to an L2 norm of at most ``bound``; scalars are kept."""
        norm = self.norm()
        if norm <= bound:
            return self
        return Contribution({k: t * (bound / norm) for k, t in self.tensors.items()}, self.scalars)


@dataclass(frozen=True)
class StackedContribution:
    """Contributions of several clients side by side, so that their total is one reduction.

    Parameters
    ----------
    tensors : mapping from name to Tensor
        What every client adds, with the clients along the first dimension.
    own : sequence of Contribution
        What each client adds besides: its scalars, and tensors under names that others do not have.
    failures : mapping from int to Exception
        Places of clients that add nothing, and why.
    """

    tensors: Mapping[str, Tensor]
    own: Sequence[Contribution]
    failures: Mapping[int, Exception] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of clients, those that failed among them."""
        return len(self.own)

    def one(self, place: int) -> Contribution:
        """Return one client's contribution; its tensors are not copied.

        Raises
        ------
        Exception
            The client's own, if it failed.
        """
        if place in self.failures:
            raise self.failures[place]
        shared = {name: tensor[place] for name, tensor in self.tensors.items()}
        return Contribution({**shared, **self.own[place].tensors}, self.own[place].scalars)

    def total(self, places: Sequence[int]) -> Contribution:
        """Return the sum over the clients at some places; in float64, unless it is one client's own contribution."""
        if len(places) == 1:
            return self.one(places[0])
        rest = total(self.own[place] for place in places)
        every = len(places) == len(self)
        chosen = {
            k: t if every else t[torch.tensor(places, dtype=torch.int64, device=t.device)]
            for k, t in self.tensors.items()
        }
        sums = {name: _sum_of_rows(tensor.detach()) for name, tensor in chosen.items()}
        return Contribution({**sums, **rest.tensors}, rest.scalars)


class RunningTotal:
    """Adds contributions one by one in float64, in place, so that memory does not grow with their number."""

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}
        self._scalars: dict[str, float] = {}

    def add(self, contribution: Contribution) -> None:
        """Add one contribution, or nothing of it.

        Raises
        ------
        ValueError
            If a tensor's shape differs from that of the same name so far.
        """
        check_shapes(contribution.tensors, self._tensors)
        known, added = [], []
        for name, tensor in contribution.tensors.items():
            if name in self._tensors:
                known.append(self._tensors[name])
                added.append(tensor.detach())
            else:
                self._tensors[name] = tensor.detach().to(torch.float64, copy=True)
        _add_in_place(known, added)
        for name, value in contribution.scalars.items():
            self._scalars[name] = self._scalars.get(name, 0.0) + value

    def value(self) -> Contribution:
        """Return the total so far; the running total must not be used afterwards."""
        return Contribution(self._tensors, self._scalars)


class UnorderedTotal:
    """Adds contributions one by one in whatever order they come, to the same bits.

    Every number is kept with what its additions rounded off (Knuth's two-sum), in twice the digits of float64; orders
    then differ below the last bit of what :meth:`value` returns.
    """

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}
        self._scalars: dict[str, float] = {}
        self._low = RunningTotal()

    def add(self, contribution: Contribution) -> None:
        """Add one contribution, or nothing of it.

        Raises
        ------
        ValueError
            If a tensor's shape differs from that of the same name so far.
        """
        check_shapes(contribution.tensors, self._tensors)
        lost_tensors = {}
        for name, tensor in contribution.tensors.items():
            if name in self._tensors:
                self._tensors[name], lost_tensors[name] = _two_sum(self._tensors[name], tensor)
            else:
                # A first term is exact.
                self._tensors[name] = tensor.detach().to(torch.float64, copy=True)
        lost_scalars = {}
        for name, value in contribution.scalars.items():
            total = self._scalars.get(name, 0.0)
            self._scalars[name] = total + value
            lost_scalars[name] = _rounded_off(total, value)
        self._low.add(Contribution(lost_tensors, lost_scalars))

    def value(self) -> Contribution:
        """Return the total so far; the total must not be used afterwards."""
        low = self._low.value()
        for name, lost in low.tensors.items():
            self._tensors[name] += lost
        return Contribution(self._tensors, {name: value + low.scalars[name] for name, value in self._scalars.items()})


def check_shapes(tensors: Mapping[str, Tensor], known: Mapping[str, Tensor]) -> None:
    """Refuse tensors that do not add to those of the same names.

    Raises
    ------
    ValueError
        Naming the first.
    """
    for name, tensor in tensors.items():
        if name in known and known[name].shape != tensor.shape:
            raise ValueError(f"{name}: shape {tuple(tensor.shape)} does not add to {tuple(known[name].shape)}")


def _rounded_off(one: float, other: float) -> float:
    """Return what float64 loses of ``one + other``."""
    rounded = one + other
    taken = rounded - one
    return (one - (rounded - taken)) + (other - taken)


def _two_sum(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Return a sum in float64 and what it loses, see :func:`_rounded_off`; in place, where nobody else looks."""
    rest = other.detach().to(torch.float64, copy=True)
    rounded = one + rest
    taken = rounded - one
    rest -= taken
    lost = torch.sub(one, taken.neg_().add_(rounded), out=taken)
    return rounded, lost.add_(rest)


def _add_in_place(totals: Sequence[Tensor], terms: Sequence[Tensor]) -> None:
    """Add to each total, which is float64, its term."""
    rest, rest_of_terms = [], []
    for total_so_far, term in zip(totals, terms, strict=True):
        if _numpy_converts(total_so_far) and _numpy_converts(term):
            array = total_so_far.numpy()
            np.add(array, term.numpy(), out=array)
        else:
            rest.append(total_so_far)
            rest_of_terms.append(term)
    if rest:
        torch._foreach_add_(rest, rest_of_terms)


def _numpy_converts(tensor: Tensor) -> bool:
    """Tell whether NumPy can add a tensor in float64: it converts piece by piece, where PyTorch copies it all first."""
    return tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.float64)


def _sum_of_rows(tensor: Tensor) -> Tensor:
    """Return the sum over the first dimension, in float64."""
    if _numpy_converts(tensor):
        return torch.from_numpy(np.asarray(np.add.reduce(tensor.numpy(), axis=0, dtype=np.float64)))
    return tensor.sum(0, dtype=torch.float64)


def total(contributions: Iterable[Contribution]) -> Contribution:
    """Add contributions in the order given, accumulating in float64."""
    running = RunningTotal()
    for contribution in contributions:
        running.add(contribution)
    return running.value()


def weighted_delta(before: Mapping[str, Tensor], after: Mapping[str, Tensor], weight: float) -> Contribution:
    """Return what a client adds for federated averaging: ``weight * (after - before)`` and ``weight``.

    Parameters
    ----------
    before, after : mapping from name to Tensor
        The trained parameters, same names and shapes.
    weight : float
        The client's weight in the mean; positive.
    """
    if not after:
        return Contribution({}, {WEIGHT: weight})
    deltas = torch._foreach_sub([after[name].detach() for name in after], [before[name] for name in after])
    torch._foreach_mul_(deltas, weight)
    return Contribution(dict(zip([DELTA + name for name in after], deltas, strict=True)), {WEIGHT: weight})


def is_finite(tensor: Tensor) -> bool:
    """Return whether no element is NaN or infinite.

    One sum tells, unless finite elements add up to more than their type can hold: then all are looked at.
    """
    return math.isfinite(tensor.sum()) or bool(torch.isfinite(tensor).all())


def stacked_delta(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    weights: Sequence[float],
    own: Sequence[Contribution],
    failures: Mapping[int, Exception],
) -> StackedContribution:
    """Return what several clients add for federated averaging, see :func:`weighted_delta`.

    Parameters
    ----------
    before : mapping from name to Tensor
        What all of them started from.
    after : mapping from name to Tensor
        The trained parameters, with the clients along the first dimension.
    weights : sequence of float
        Of each client; positive.
    own : sequence of Contribution
        What each client adds besides.
    failures : mapping from int to Exception
        Clients that add nothing.
    """
    tensors = {DELTA + name: stacked_change(before[name], tensor, weights) for name, tensor in after.items()}
    weighted = [
        Contribution(rest.tensors, {WEIGHT: weight, **rest.scalars}) for weight, rest in zip(weights, own, strict=True)
    ]
    return StackedContribution(tensors, weighted, failures)


def stacked_change(before: Tensor, after: Tensor, factors: Sequence[float]) -> Tensor:
    """Return each client's ``factor * (after - before)``, shape (clients, ...); ``before`` has one for all."""
    change = after.detach() - before
    own = torch.tensor(factors, dtype=change.dtype, device=change.device)
    return change.mul_(own.view(-1, *[1] * (change.dim() - 1)))


def mean_delta(contribution: Contribution) -> State:
    """Return the weighted mean delta of a total, in float64, by parameter name.

    Raises
    ------
    NoWeight
        If the total carries no positive weight.
    """
    weight = contribution.scalars.get(WEIGHT, 0.0)
    if not weight > 0:
        raise NoWeight(f"the total weight of the round is {weight}; it must be positive")
    return {
        name.removeprefix(DELTA): tensor / weight
        for name, tensor in contribution.tensors.items()
        if name.startswith(DELTA)
    }
