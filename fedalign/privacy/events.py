"""What one noisy release was, for the ledger: mechanism, sampling and noise, and which accountants know it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from fedalign.errors import UserError
from fedalign.privacy.poisson_renyi import poisson_gaussian_rdp

if TYPE_CHECKING:
    # Takes a second or two to import, which a node that keeps no account need not spend at every message.
    import dp_accounting

Orders = NDArray[np.float64]


class Unit(StrEnum):
    """Whose data the guarantee hides: all of a client's, one training example, or all examples of a user."""

    CLIENT = "client"
    EXAMPLE = "example"
    USER = "user"


class Relation(StrEnum):
    """What neighbouring data sets differ in: one unit more or less, or the data of one unit."""

    ADD_OR_REMOVE = "add_or_remove"
    REPLACE_ONE = "replace_one"


@dataclass(frozen=True)
class Event(ABC):
    """One release, or one that states all releases of a phase so far.

    A subclass is a frozen dataclass whose fields are numbers, so that its fields are its JSON; its name is what
    `from_json` finds it by. Noise multipliers are always the standard deviation of the noise on a sum divided by what
    adding or removing one unit can change in it, whatever relation it is accounted under.

    Attributes
    ----------
    mechanism, sampling : str
        Names for the report.
    relations : frozenset of Relation
        What it can be accounted under.
    cumulative : bool
        Whether the event states everything that its phase has released so far, so that it takes the place of what
        it stated before.
    """

    mechanism: ClassVar[str]
    sampling: ClassVar[str] = "none"
    relations: ClassVar[frozenset[Relation]] = frozenset(Relation)
    cumulative: ClassVar[bool] = False

    @abstractmethod
    def rdp(self, orders: Orders) -> Orders:
        """Return the Rényi divergence between neighbours at each order, shape of ``orders``; infinite without noise."""

    @abstractmethod
    def doubled(self) -> Event:
        """Return the same release with twice the sensitivity: replacing a unit removes one and adds another."""

    @property
    def gaussian(self) -> float | None:
        """Noise multiplier, if the release is exactly one Gaussian mechanism; else None."""
        return None

    @property
    def pld_event(self) -> dp_accounting.DpEvent | None:
        """The event as dp-accounting's PLD accountant takes it; None if it has no curve for it."""
        return None

    def continued_by(self, later: Event) -> bool:
        """Tell whether ``later`` states all that this event did and what came after it; for cumulative ones."""
        return False

    def under(self, relation: Relation) -> Event:
        """Return the event with the sensitivity that a relation gives it.

        Raises
        ------
        UserError
            If it cannot be accounted under the relation.
        """
        if relation not in self.relations:
            fitting = " or ".join(sorted(self.relations))
            raise UserError(f"{type(self).__name__} cannot be accounted under {relation}, only under {fitting}")
        return self if relation is Relation.ADD_OR_REMOVE else self.doubled()

    def to_json(self) -> dict[str, Any]:
        """Return the class's name and the fields."""
        return {"event": type(self).__name__, **asdict(self)}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Event:
        """Return the event that `to_json` described, of any subclass that has been imported.

        Raises
        ------
        UserError
            If there is no such event, or its fields are others.
        """
        fields = {name: value for name, value in facts.items() if name != "event"}
        for known in _known_events():
            if known.__name__ == facts.get("event"):
                try:
                    return known(**fields)
                except (TypeError, ValueError) as error:
                    raise UserError(f"privacy ledger: {known.__name__} does not fit {fields}: {error}") from error
        raise UserError(f"privacy ledger: unknown event {facts.get('event')!r}; this version cannot account for it")


@dataclass(frozen=True)
class GaussianEvent(Event):
    """A noisy sum over units that an observer may know: nothing is amplified.

    Parameters
    ----------
    noise_multiplier : float
        At least 0.
    """

    mechanism: ClassVar[str] = "gaussian"
    noise_multiplier: float

    def __post_init__(self) -> None:
        _check_noise(self.noise_multiplier)

    @property
    def gaussian(self) -> float:
        """The noise multiplier."""
        return self.noise_multiplier

    @property
    def pld_event(self) -> dp_accounting.DpEvent:
        """A Gaussian event."""
        import dp_accounting

        return dp_accounting.GaussianDpEvent(self.noise_multiplier)

    def rdp(self, orders: Orders) -> Orders:
        """Return ``order / (2 noise_multiplier**2)`` (Mironov 2017, Corollary 3)."""
        return gaussian_rdp(self.noise_multiplier, orders)

    def doubled(self) -> Self:
        """Return half the noise multiplier."""
        return type(self)(self.noise_multiplier / 2)


@dataclass(frozen=True)
class PoissonGaussianEvent(Event):
    """A noisy sum over units that each came with probability ``rate``, and nobody sees which (Abadi et al. 2016).

    It is accounted under add-or-remove only: the Rényi curve that checks the ledger is not known to hold for
    replacing a unit, and dp-accounting's REPLACE_SPECIAL, replacing by nothing, is not that.

    Of local training with sampled clients, ``rate`` is the rate within the client alone. That clients were sampled
    too does not amplify: the server, and whoever sees its records, knows who took part.

    Parameters
    ----------
    rate : float
        In (0, 1].
    noise_multiplier : float
        At least 0.
    """

    mechanism: ClassVar[str] = "gaussian"
    sampling: ClassVar[str] = "poisson"
    relations: ClassVar[frozenset[Relation]] = frozenset([Relation.ADD_OR_REMOVE])
    rate: float
    noise_multiplier: float

    def __post_init__(self) -> None:
        _check_noise(self.noise_multiplier)
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate={self.rate} must lie in (0, 1]")

    @property
    def gaussian(self) -> float | None:
        """The noise multiplier if everyone always came."""
        return self.noise_multiplier if self.rate == 1 else None

    @property
    def pld_event(self) -> dp_accounting.DpEvent:
        """A Poisson-sampled Gaussian event."""
        import dp_accounting

        return dp_accounting.PoissonSampledDpEvent(self.rate, dp_accounting.GaussianDpEvent(self.noise_multiplier))

    def rdp(self, orders: Orders) -> Orders:
        """Return the curve of Mironov, Talwar and Zhang (2019)."""
        return poisson_gaussian_rdp(self.rate, self.noise_multiplier, orders)

    def doubled(self) -> Event:
        """Refuse: see the class."""
        raise UserError("a Poisson-sampled release cannot be accounted under replace_one; use add_or_remove")


@dataclass(frozen=True)
class FixedSizeGaussianEvent(Event):
    """A noisy sum over a cohort of fixed size, drawn without replacement, and nobody sees which.

    The cohort's size stays the same for neighbours only if one unit is replaced. That moves the sum by twice the
    bound, so the curve (Wang, Balle and Kasiviswanathan 2019, Theorem 27) is taken at half the noise multiplier.
    dp-accounting knows it as a Rényi curve only.

    Parameters
    ----------
    population, cohort : int
        Of ``population`` units, ``cohort`` come.
    noise_multiplier : float
        At least 0; as everywhere, relative to adding or removing a unit.
    """

    mechanism: ClassVar[str] = "gaussian"
    sampling: ClassVar[str] = "without_replacement"
    relations: ClassVar[frozenset[Relation]] = frozenset([Relation.REPLACE_ONE])
    population: int
    cohort: int
    noise_multiplier: float

    def __post_init__(self) -> None:
        _check_noise(self.noise_multiplier)
        if not 0 < self.cohort <= self.population:
            raise ValueError(f"cohort={self.cohort} must lie between 1 and population={self.population}")

    def rdp(self, orders: Orders) -> Orders:
        """Return dp-accounting's curve at half the noise multiplier."""
        if self.noise_multiplier == 0:
            return np.full(orders.shape, math.inf)
        import dp_accounting
        from dp_accounting import rdp

        accountant = rdp.RdpAccountant(orders, dp_accounting.NeighboringRelation.REPLACE_ONE)
        inner = dp_accounting.GaussianDpEvent(self.noise_multiplier / 2)
        accountant.compose(dp_accounting.SampledWithoutReplacementDpEvent(self.population, self.cohort, inner))
        return np.asarray(accountant.rdp, dtype=np.float64)

    def doubled(self) -> Event:
        """Return itself, whose curve has the doubled sensitivity; a Gaussian event if everyone comes."""
        return GaussianEvent(self.noise_multiplier / 2) if self.cohort == self.population else self


@dataclass(frozen=True)
class MatrixGaussianEvent(Event):
    """All that a matrix mechanism has released in a phase so far, as one Gaussian mechanism.

    Noise correlated over rounds is independent noise on the rounds' encoded sums (Denisov et al. 2022), so the phase
    is one Gaussian release whose sensitivity is what one unit can change in all encoded sums together.

    Parameters
    ----------
    noise_multiplier : float
        Noise of one encoded sum relative to what one unit changes in it by one participation; at least 0.
    sensitivity : float
        What one unit has changed so far relative to one participation: the square root of the number of participations
        where they are as far apart as the bands. Positive.
    """

    mechanism: ClassVar[str] = "banded_matrix"
    cumulative: ClassVar[bool] = True
    noise_multiplier: float
    sensitivity: float

    def __post_init__(self) -> None:
        _check_noise(self.noise_multiplier)
        if not (math.isfinite(self.sensitivity) and self.sensitivity > 0):
            raise ValueError(f"sensitivity={self.sensitivity} must be finite and positive")

    @property
    def gaussian(self) -> float:
        """Noise multiplier of the phase so far."""
        return self.noise_multiplier / self.sensitivity

    @property
    def pld_event(self) -> dp_accounting.DpEvent:
        """A Gaussian event."""
        import dp_accounting

        return dp_accounting.GaussianDpEvent(self.gaussian)

    def continued_by(self, later: Event) -> bool:
        """Tell whether the noise is the same and the sensitivity has not gone down."""
        if not isinstance(later, MatrixGaussianEvent):
            return False
        return later.noise_multiplier == self.noise_multiplier and later.sensitivity >= self.sensitivity

    def rdp(self, orders: Orders) -> Orders:
        """Return the Gaussian mechanism's curve."""
        return gaussian_rdp(self.gaussian, orders)

    def doubled(self) -> Self:
        """Return twice the sensitivity."""
        return type(self)(self.noise_multiplier, 2 * self.sensitivity)


def gaussian_rdp(noise_multiplier: float, orders: Orders) -> Orders:
    """Return ``order / (2 noise_multiplier**2)``, the Gaussian mechanism's Rényi curve; infinite without noise."""
    square = noise_multiplier**2
    return orders / (2 * square) if square else np.full(orders.shape, math.inf)


def _check_noise(noise_multiplier: float) -> None:
    if not (math.isfinite(noise_multiplier) and noise_multiplier >= 0):
        raise ValueError(f"noise_multiplier={noise_multiplier} must be finite and at least 0")


def _known_events() -> Iterator[type[Event]]:
    pending = Event.__subclasses__()
    while pending:
        known = pending.pop()
        yield known
        pending.extend(known.__subclasses__())
