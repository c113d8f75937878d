"""summary.json: what a run came to, in the form that other tools read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from fedalign.errors import UserError
from fedalign.metrics.record import Metric

PRIVACY_KEYS = (
    "unit",
    "relation",
    "mechanism",
    "sampling",
    "sampling_rate",
    "noise_multiplier",
    "releases",
    "epsilon",
    "delta",
)


@dataclass(frozen=True)
class Timing:
    """Where the time went; seconds and milliseconds of wall time.

    Parameters
    ----------
    total_s : float
        From the start of the run to its end.
    per_round_s : float
        Mean over the rounds, evaluation included.
    client_updates : int
        Local trainings done, over all rounds.
    per_client_update_ms : float
        Mean time inside one local training.
    engine_overhead_ms : float
        Mean time per client update that the engine adds to it: messages, scheduling, copies.
    simulated_s : float or None
        What the rounds would have taken the clients of a simulated population; None where none is simulated.
    """

    total_s: float
    per_round_s: float
    client_updates: int
    per_client_update_ms: float
    engine_overhead_ms: float
    simulated_s: float | None = None


@dataclass(frozen=True)
class Traffic:
    """Bytes sent from the server to clients and back, over the whole run."""

    down_bytes: int
    up_bytes: int


@dataclass(frozen=True)
class Summary:
    """The outcome of one run; checked when made.

    Parameters
    ----------
    method, data : str
        Names as on the command line.
    status : {"completed", "failed"}
    rounds : int
        Rounds done, over all phases.
    metrics : dict from name to final value
        Names begin with ``initial/``, ``train/``, ``test/`` or ``unseen/``.
    groups : dict from group to (dict from name to final value)
    privacy : dict or None
        The guarantee with at least the keys of ``PRIVACY_KEYS``; None when the run gives none.
    timing : Timing
    traffic : Traffic
    seed : int
    reason : str or None
        Why a failed run failed; None for a completed one.
    dropped : dict from cleaning rule to count
        What the data's cleaning and the partition left out; empty where the server reads no data.

    Raises
    ------
    UserError
        If a number is NaN or infinite, a key of the guarantee is missing, or status and reason disagree.
    """

    method: str
    data: str
    status: Literal["completed", "failed"]
    rounds: int
    metrics: dict[str, float]
    groups: dict[str, dict[str, float]]
    privacy: dict[str, Any] | None
    timing: Timing
    traffic: Traffic
    seed: int
    reason: str | None = None
    dropped: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what types cannot say."""
        if (self.status == "failed") != (self.reason is not None):
            raise UserError(f"summary: status {self.status!r} with reason {self.reason!r}; only a failed run has one")
        missing = [key for key in PRIVACY_KEYS if self.privacy is not None and key not in self.privacy]
        if missing:
            raise UserError(f"summary: privacy lacks {', '.join(missing)}; a guarantee names all of its terms")
        for name, value in _numbers(dataclasses.asdict(self), "summary"):
            if not math.isfinite(value):
                raise UserError(f"{name} is {value}; a result must be a finite number, or left out")

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``summary.json`` holds; ``reason`` is there only when the run failed.

        So is simulated time only where there was any.
        """
        content = dataclasses.asdict(self)
        if self.reason is None:
            del content["reason"]
        if self.timing.simulated_s is None:
            del content["timing"]["simulated_s"]
        return content

    @classmethod
    def from_json(cls, content: object, source: str) -> Summary:
        """Return the summary of a decoded ``summary.json``.

        Raises
        ------
        UserError
            If a key is missing or a value has the wrong type; the message begins with ``source``.
        """
        try:
            return TypeAdapter(cls).validate_python(content)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"]) or "the file"
            raise UserError(f"{source}: {key}: {first['msg']}; the file is damaged, run again") from error


def final_values(records: Iterable[Metric]) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Return ``metrics`` and ``groups`` of a summary from a run's metrics, in the order they were recorded.

    The last value of a name is its final one. What the evaluation before the first round found for a name
    ``unseen/x`` (or, when no group is unseen, ``test/x``) is kept as ``initial/x``. What the server measured
    about itself is left to ``timing``, ``traffic`` and ``privacy``.
    """
    metrics: dict[str, float] = {}
    groups: dict[str, dict[str, float]] = {}
    initial: dict[str, float] = {}
    first_phase: str | None = None
    for record in records:
        first_phase = record.phase if first_phase is None else first_phase
        if record.scope == "server":
            continue
        if record.group is not None:
            groups.setdefault(record.group, {})[record.name] = record.value
            continue
        metrics[record.name] = record.value
        if record.round == 0 and record.phase == first_phase:
            initial[record.name] = record.value
    return {**_initial(initial), **metrics}, groups


def _initial(before: Mapping[str, float]) -> dict[str, float]:
    """Rename the values of one population to ``initial/``."""
    for population in ("unseen/", "test/"):
        found = {name: value for name, value in before.items() if name.startswith(population)}
        if found:
            return {"initial/" + name.removeprefix(population): value for name, value in found.items()}
    return {}


def _numbers(content: object, where: str) -> Iterator[tuple[str, float]]:
    """Walk nested dicts and lists, and yield every number with its place."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from _numbers(value, f"{where}.{key}")
    elif isinstance(content, list | tuple):
        for index, value in enumerate(content):
            yield from _numbers(value, f"{where}[{index}]")
    elif isinstance(content, float | int):
        yield where, float(content)
