"""Who of a cohort answers, and when: clients that are away, drop out or come too late, on a simulated clock."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from fedalign.errors import UserError
from fedalign.federation.devices import HOUR_S, Device, Devices, Load, Positive, Spread
from fedalign.privacy.scheme import Sampling, Scheme
from fedalign.rng import Streams


class Absence(StrEnum):
    """Why a client that was drawn gives nothing."""

    OFFLINE = "offline"
    """It is away and hears nothing of the round."""
    DROPPED = "dropped"
    """It got the state, and nothing came back."""
    LATE = "late"
    """It got the state, and the round was over before its answer came."""


@dataclass(frozen=True)
class Turnout:
    """How a round of a simulated population goes.

    Parameters
    ----------
    present : tuple of str
        Clients whose answers count, in the order of the cohort.
    absent : mapping from client to Absence
    seconds : float
        Simulated length of the round.
    """

    present: tuple[str, ...] = ()
    absent: Mapping[str, Absence] = field(default_factory=dict)
    seconds: float = 0.0

    def count(self, absence: Absence) -> int:
        """Return how many are absent for a reason."""
        return sum(each is absence for each in self.absent.values())


class Population(ABC):
    """What the clients of a simulated federation are like; the ``population`` config group."""

    @abstractmethod
    def fleet(self, clients: Sequence[str], seed: int) -> Mapping[str, Device] | None:
        """Return what the clients run on; None where nothing is simulated.

        Raises
        ------
        UserError
            If the settings refer to something that cannot be had.
        """

    def check_sampling(self, sampling: Sampling) -> None:  # noqa: B027, one that is always there changes no account
        """Refuse a population that a round's noise is not accounted for with.

        Raises
        ------
        UserError
            Naming the key and the fix.
        """


@dataclass(frozen=True)
class Everybody(Population):
    """Everybody is there at once, always; nothing is simulated."""

    def fleet(self, clients: Sequence[str], seed: int) -> None:
        """Return None."""
        return


@dataclass(frozen=True)
class Simulated(Population):
    """Clients that come and go, straggle and drop out.

    Parameters
    ----------
    devices : Devices
    update_seconds : float
        What a client's local work takes on a device of slowness 1.
    jitter_sigma : float
        Standard deviation of the log of a factor on it that is drawn anew in every round; its median is 1.
    dropout : float
        Probability that a client that is there drops out of a round.
    deadline : float or None
        Simulated seconds after which a round ends, whoever is missing.
    over_selection : float
        A round ends when one in so many of those drawn has answered: at 1.25, four fifths of the cohort.
    pause_seconds : float
        Simulated seconds between two rounds.
    start_hour : float
        Hour of the day at which the run begins.
    cohorts : {"registered", "online"}
        Whether cohorts are drawn from all clients, or from those that are there.
    """

    devices: Devices
    update_seconds: Annotated[float, Field(ge=0)]
    jitter_sigma: Spread
    dropout: Annotated[float, Field(ge=0, lt=1)]
    deadline: Positive | None
    over_selection: Annotated[float, Field(ge=1)]
    pause_seconds: Positive
    start_hour: Annotated[float, Field(ge=0, lt=24)]
    cohorts: Literal["registered", "online"]

    def fleet(self, clients: Sequence[str], seed: int) -> Mapping[str, Device]:
        """Return the devices' fleet."""
        return self.devices.fleet(clients, Streams(seed))

    def check_sampling(self, sampling: Sampling) -> None:
        """Refuse cohorts that are a larger share of those there than is accounted for, and clients that oust others.

        A client that is drawn and does not answer adds zero, which the account covers: it is drawn no more often than
        is accounted for, and its bound holds. Two things are not covered. A cohort of fixed size from those who are
        there is a larger share of them. And where a round ends after so many answers, one client more pushes another
        out: the sum changes by two terms, and with independent coins only one is accounted for.
        """
        if self.cohorts == "online" and sampling.scheme in (Scheme.FIXED_SIZE, Scheme.KNOWN):
            raise UserError(
                "population.cohorts=online: a cohort out of those who are there may be a larger share of them than the "
                "guarantee accounts for; set population.cohorts=registered"
            )
        if self.over_selection > 1 and sampling.scheme is Scheme.POISSON:
            raise UserError(
                f"population.over_selection={self.over_selection:g}: where the first answers end a round, one client "
                "more pushes another out, and federation/sampler=poisson is accounted for as if it did not; set "
                "population.over_selection=1 and let population.deadline end rounds, or set federation/sampler=fixed"
            )

    def turnout(
        self, cohort: Sequence[str], fleet: Mapping[str, Device], load: Load, clock_s: float, streams: Streams
    ) -> Turnout:
        """Return how a round goes; a function of its arguments alone.

        Parameters
        ----------
        cohort : sequence of str
            The clients that were drawn.
        fleet : mapping from client to Device
        load : Load
            What each moves.
        clock_s : float
            Simulated time at which the round begins, in seconds since the run began.
        streams : Streams
            Of the round.
        """
        absent, times = dict[str, Absence](), dict[str, float]()
        now_s = self.start_hour * HOUR_S + clock_s
        for client in cohort:
            generator = replace(streams, client=client).numpy("population/round")
            coin, jitter = generator.random(), generator.standard_normal()
            if not fleet[client].is_online(now_s):
                absent[client] = Absence.OFFLINE
            elif coin < self.dropout:
                absent[client] = Absence.DROPPED
            else:
                work_s = self.update_seconds * math.exp(self.jitter_sigma * jitter)
                times[client] = fleet[client].seconds(load, work_s)
        return self._closed(cohort, absent, times)

    def _closed(self, cohort: Sequence[str], absent: dict[str, Absence], times: Mapping[str, float]) -> Turnout:
        """End a round: with enough answers, at the deadline, or with the last answer, whichever comes first."""
        deadline = math.inf if self.deadline is None else self.deadline
        # The rounding keeps 10 of 13 at 1.3, though the quotient is slightly above 10 in floating point.
        wanted = math.ceil(round(len(cohort) / self.over_selection, 9))
        in_time = sorted((client for client in times if times[client] <= deadline), key=times.__getitem__)
        taken = dict.fromkeys(in_time[:wanted])
        late = {client: Absence.LATE for client in times if client not in taken}
        waited = bool(late) and len(taken) < wanted
        seconds = deadline if waited else max((times[client] for client in taken), default=0.0)
        return Turnout(tuple(client for client in cohort if client in taken), {**absent, **late}, seconds)
