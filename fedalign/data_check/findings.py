"""What a check found: errors, warnings and figures, for a terminal and for other programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

Level = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One thing that somebody should know of a file.

    Parameters
    ----------
    level : {"error", "warning", "note"}
        ``error``: a run would refuse the file. ``warning``: a run would use it, perhaps not as meant.
    code : str
        Short name of what it is, for programs.
    message : str
        One line that says what to do.
    count : int
        How many rows, cells or people it is about.
    rows : sequence of str
        Where the first of them stand.
    """

    level: Level
    code: str
    message: str
    count: int = 1
    rows: Sequence[str] = ()


@dataclass(frozen=True)
class Spread:
    """How sizes are spread over people, groups or texts.

    Parameters
    ----------
    least, median, most : float
    number : int
        How many there are.
    """

    least: float
    median: float
    most: float
    number: int

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """Return the spread of some sizes; zeros where there are none."""
        ordered = sorted(values)
        if not ordered:
            return Spread(0, 0, 0, 0)
        middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
        return Spread(ordered[0], middle, ordered[-1], len(ordered))


@dataclass
class CheckReport:
    """All that is known of a file.

    Parameters
    ----------
    path : str
    kind : str
        ``survey``, ``pairs``, ``rankings`` or ``texts``.
    rows : int
        Rows that could be read.
    findings : list of Finding
    sizes : dict from str to Spread
        What there is how many of.
    counts : dict from str to (dict from str to int)
        Distributions: of groups, of splits, of the option or the response that is preferred.
    dropped : dict from rule to int
        What cleaning removes.
    leaves : dict from str to str
        By privacy mode, what leaves the machine.
    stays : str
    """

    path: str
    kind: str
    rows: int = 0
    findings: list[Finding] = field(default_factory=list)
    sizes: dict[str, Spread] = field(default_factory=dict)
    counts: dict[str, Mapping[str, int]] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    leaves: dict[str, str] = field(default_factory=dict)
    stays: str = ""

    def of_level(self, level: Level) -> list[Finding]:
        """Return the findings of a level in their order."""
        return [finding for finding in self.findings if finding.level == level]

    @property
    def refused(self) -> bool:
        """Whether a run would refuse the file."""
        return bool(self.of_level("error"))

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values; texts of the file are in it only as far as error messages quote them."""
        plain = replace(self, counts={title: dict(counts) for title, counts in self.counts.items()})
        return {**asdict(plain), "refused": self.refused}
