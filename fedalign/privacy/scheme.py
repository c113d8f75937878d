"""How cohorts come about: what a mechanism and the accountant must know of a federation's sampling."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Scheme(StrEnum):
    """The kinds of sampling that are told apart."""

    EVERYONE = "everyone"
    POISSON = "poisson"
    FIXED_SIZE = "fixed_size"
    CYCLIC = "cyclic"
    KNOWN = "known"
    """Drawn, but seen by others than the server: by the neighbours of a secure sum, for instance."""


@dataclass(frozen=True)
class Sampling:
    """The sampling of a phase.

    Parameters
    ----------
    scheme : Scheme
    population : int
        Training clients; public.
    expected : float
        Expected size of a cohort, whatever the size of the one that is drawn; public.
    separation : int
        A client's rounds are at least this many rounds apart.
    """

    scheme: Scheme
    population: int
    expected: float
    separation: int = 1

    @property
    def rate(self) -> float:
        """Share of the population that is expected in a round."""
        return self.expected / self.population
