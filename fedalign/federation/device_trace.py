"""Devices from a file of measurements: named rows for clients that were measured, others dealt out to the rest."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from fedalign.data.table import read_table, suffix_of
from fedalign.errors import UserError
from fedalign.federation.devices import HOUR_S, Device, Devices, Windows
from fedalign.rng import Streams

_KEY = "population.devices.path"
_NUMBERS = ("slowness", "down", "up")


@dataclass(frozen=True)
class TracedDevices(Devices):
    """Devices as a trace tells them.

    A row has ``slowness`` (factor on the time of local work), ``down`` and ``up`` (bytes a second), and may have
    ``client`` (without it the row is dealt to clients that have none of their own) and ``online``, a list of pairs of
    hours from the beginning of a period; without it the device is always there.

    Parameters
    ----------
    path : str or None
        CSV, JSON Lines or Parquet; in CSV ``online`` is JSON, as in ``[[8, 12.5], [20, 30]]``.
    period_hours : float
        After which ``online`` comes again: 24 for a day, 168 for a week.

    Raises
    ------
    UserError
        If there is no path.
    """

    path: str | None
    period_hours: Annotated[float, Field(gt=0)]

    def __post_init__(self) -> None:
        """Refuse to go without a file."""
        if self.path is None:
            raise UserError(f"{_KEY}=null: set it to a trace of devices (docs/population.md)")

    def fleet(self, clients: Sequence[str], streams: Streams) -> Mapping[str, Device]:
        """Return each client's own row, or one drawn for it from those without a name.

        Raises
        ------
        UserError
            If the file cannot be read, a row is wrong, or a client has no row to be dealt.
        """
        named, spare = self._read()
        fleet = {}
        for client in clients:
            if client in named:
                fleet[client] = named[client]
                continue
            if not spare:
                raise UserError(
                    f"{_KEY}={self.path}: no row for client {client!r}, and none without a client to deal to it; add "
                    "a row of its own or one that leaves client empty"
                )
            draw = replace(streams, client=client).numpy("population/trace")
            fleet[client] = spare[int(draw.integers(len(spare)))]
        return fleet

    def _read(self) -> tuple[dict[str, Device], list[Device]]:
        path, named, spare = Path(str(self.path)), dict[str, Device](), list[Device]()
        if not path.is_file():
            raise UserError(f"{_KEY}={self.path}: no such file; give a trace of devices (docs/population.md)")
        suffix_of(path, _KEY)
        for where, row in read_table(path, _NUMBERS):
            device, client = self._device(where, row), row.get("client")
            if client in (None, ""):
                spare.append(device)
            elif str(client) in named:
                raise UserError(f"{where}: client {client!r} has a row already; leave one of them out")
            else:
                named[str(client)] = device
        return named, spare

    def _device(self, where: str, row: Mapping[str, object]) -> Device:
        slowness, down, up = (_positive(where, name, row[name]) for name in _NUMBERS)
        return Device(slowness, down, up, self._windows(where, row.get("online")), self.period_hours * HOUR_S)

    def _windows(self, where: str, cell: object) -> Windows | None:
        """Return hours as seconds; one that ends before it begins goes on in the next period."""
        if cell in (None, "", []):
            return None
        try:
            pairs: Any = json.loads(cell) if isinstance(cell, str) else cell
            windows = [(float(begin), float(end)) for begin, end in pairs]
        except (TypeError, ValueError):
            windows = [(math.nan, math.nan)]
        for begin, end in windows:
            if not (0 <= begin < self.period_hours and begin < end <= begin + self.period_hours):
                raise UserError(
                    f"{where}: online={cell!r} must be pairs of hours such as [[8, 12.5], [20, 30]], each beginning "
                    f"below {self.period_hours:g} and ending after it began, at most a period later"
                )
        return tuple((begin * HOUR_S, end * HOUR_S) for begin, end in windows) or None


def _positive(where: str, name: str, cell: object) -> float:
    try:
        value = float(cell)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise UserError(f"{where}: {name}={cell!r} must be a positive number")
    return value
