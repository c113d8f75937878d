"""What simulated clients run on: how fast they compute and send, and at which hours they are there."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

from fedalign.rng import Streams

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S

Positive = Annotated[float, Field(gt=0)]
Spread = Annotated[float, Field(ge=0)]
Windows = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Load:
    """What one client moves for an update, in bytes."""

    down_bytes: int
    up_bytes: int


@dataclass(frozen=True)
class Device:
    """One client's machine and line.

    Parameters
    ----------
    slowness : float
        Factor on the time of local work; 1 is the reference.
    down, up : float
        Bytes a second.
    windows : tuple of (float, float) or None
        When it is there: seconds from the beginning of a period, the second number not included. One past the end of
        the period goes on at its beginning. None is always.
    period_s : float
        Seconds after which the windows come again.
    """

    slowness: float
    down: float
    up: float
    windows: Windows | None = None
    period_s: float = DAY_S

    def is_online(self, clock_s: float) -> bool:
        """Tell whether it is there at a time of the simulated clock."""
        if self.windows is None:
            return True
        now = clock_s % self.period_s
        return any(begin <= now < end or begin <= now + self.period_s < end for begin, end in self.windows)

    def seconds(self, load: Load, work_s: float) -> float:
        """Return how long an update takes whose local work takes the reference device ``work_s`` seconds."""
        return load.down_bytes / self.down + work_s * self.slowness + load.up_bytes / self.up


class Devices(ABC):
    """Says what each client runs on; fixed for a run."""

    @abstractmethod
    def fleet(self, clients: Sequence[str], streams: Streams) -> Mapping[str, Device]:
        """Return the device of every client.

        Parameters
        ----------
        clients : sequence of str
        streams : Streams
            Of the run.

        Raises
        ------
        UserError
            If what the settings refer to cannot be had.
        """


@dataclass(frozen=True)
class Daily:
    """One window a day in which a client is there.

    Parameters
    ----------
    hours : float
        Its length.
    middle_hour : float
        Hour of the day around which it lies, for the median client.
    spread_hours : float
        Standard deviation of the clients' middles: time zones and habits.
    """

    hours: Annotated[float, Field(gt=0, le=24)]
    middle_hour: Annotated[float, Field(ge=0, lt=24)]
    spread_hours: Spread

    def windows(self, shift: float) -> Windows:
        """Return the window of a client whose middle is ``shift`` standard deviations late."""
        begin = (self.middle_hour + self.spread_hours * shift - self.hours / 2) * HOUR_S % DAY_S
        return ((begin, begin + self.hours * HOUR_S),)


@dataclass(frozen=True)
class LogNormalDevices(Devices):
    """Speeds and bandwidths with log-normal spread, drawn once for each client.

    Parameters
    ----------
    slowness_sigma : float
        Standard deviation of the log of the slowness, whose median is 1.
    down_median, up_median : float
        Bytes a second of the median client.
    down_sigma, up_sigma : float
        Standard deviations of their logs.
    daily : Daily or None
        None keeps everybody there.
    """

    slowness_sigma: Spread
    down_median: Positive
    down_sigma: Spread
    up_median: Positive
    up_sigma: Spread
    daily: Daily | None

    def fleet(self, clients: Sequence[str], streams: Streams) -> dict[str, Device]:
        """Return devices that follow from the run's seed and the clients' names alone."""
        return {client: self._device(replace(streams, client=client)) for client in clients}

    def _device(self, streams: Streams) -> Device:
        slow, down, up, shift = streams.numpy("population/device").standard_normal(4).tolist()
        return Device(
            math.exp(self.slowness_sigma * slow),
            self.down_median * math.exp(self.down_sigma * down),
            self.up_median * math.exp(self.up_sigma * up),
            None if self.daily is None else self.daily.windows(shift),
        )
