"""Reads what is new in metrics.jsonl, a piece at a time, while a run appends to it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from fedalign.metrics.record import Metric
from fedalign.report.metrics_log import from_line

PIECE = 2**20
"""Bytes read at once: a fraction of a second of parsing."""


@dataclass(frozen=True)
class Piece:
    """What one look found.

    Parameters
    ----------
    metrics : list of Metric
    again : bool
        Whether the file was made anew, as when a run is resumed: what was read before counts no more.
    more : bool
        Whether there is more to read at once.
    """

    metrics: list[Metric]
    again: bool
    more: bool


class MetricsTail:
    """A place in a growing file.

    Parameters
    ----------
    path : Path
        It need not exist yet.

    Attributes
    ----------
    broken : int
        Lines that were no metric; they are passed over.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._file: tuple[int, int] | None = None
        self.broken = 0

    def read(self, size: int = PIECE) -> Piece:
        """Return the metrics of the whole lines that are new, of about ``size`` bytes at most.

        A last line without its end is left for the next time.
        """
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return Piece([], self._made_anew(None, 0), False)
        with file:
            status = os.fstat(file.fileno())
            again = self._made_anew((status.st_dev, status.st_ino), status.st_size)
            file.seek(self._offset)
            content = file.read(size)
            if b"\n" not in content:
                content += file.readline()
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        return Piece(self._parse(whole), again, bool(whole) and self._offset < status.st_size)

    def _made_anew(self, file: tuple[int, int] | None, size: int) -> bool:
        """Start again where the file is another or shorter than what was read of it."""
        again = self._offset > 0 and (file != self._file or size < self._offset)
        if again:
            self._offset, self.broken = 0, 0
        self._file = file
        return again

    def _parse(self, content: bytes) -> list[Metric]:
        found = []
        for line in content.decode("utf-8", errors="replace").splitlines():
            try:
                found.append(from_line(line))
            except ValueError:
                self.broken += 1
        return found


def last_values(path: Path, size: int = PIECE) -> dict[str, float]:
    """Return the last value over all groups of every metric near the end of the file, ``size`` bytes of it.

    What the server measures of itself is left out.
    """
    try:
        with path.open("rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - size)
            file.seek(start)
            content = file.read()
    except FileNotFoundError:
        return {}
    lines = content[: content.rfind(b"\n") + 1].split(b"\n")[1 if start else 0 :]
    found: dict[str, float] = {}
    for line in lines:
        try:
            metric = from_line(line.decode("utf-8", errors="replace"))
        except ValueError:
            continue
        if metric.group is None and metric.scope != "server":
            found[metric.name] = metric.value
    return found
