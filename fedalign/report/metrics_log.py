"""metrics.jsonl: one metric a line, written round by round, read back, and cut at a checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import IO, get_args

from fedalign.errors import UserError
from fedalign.federation.observer import PhasePlan, RoundReport
from fedalign.metrics.record import Metric, Scope
from fedalign.report.atomic import write_text_atomic


def to_line(metric: Metric) -> str:
    """Return ``metric`` as one line of JSON, without the line break.

    Raises
    ------
    UserError
        If the value or its count is NaN or infinite, which JSON cannot hold and no reader expects.
    """
    value, n = float(metric.value), float(metric.n)
    if not (math.isfinite(value) and math.isfinite(n)):
        group = "" if metric.group is None else f" of group {metric.group!r}"
        raise UserError(
            f"metric {metric.name!r}{group} is {value} (n = {n}) in phase {metric.phase!r}, "
            f"round {metric.round}: the run diverged; lower the learning rate or check the data"
        )
    fields = {"phase": metric.phase, "round": metric.round, "scope": metric.scope, "group": metric.group}
    return json.dumps({**fields, "name": metric.name, "value": value, "n": n}, allow_nan=False)


def from_line(line: str) -> Metric:
    """Return the metric of one line.

    Raises
    ------
    ValueError
        If the line is not a whole metric: broken JSON, a missing key, a value that is no finite number.
    """
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, found {type(row).__name__}")
    try:
        metric = Metric(
            phase=str(row["phase"]),
            round=int(row["round"]),
            scope=row["scope"],
            group=None if row["group"] is None else str(row["group"]),
            name=str(row["name"]),
            value=float(row["value"]),
            n=float(row["n"]),
        )
    except KeyError as error:
        raise ValueError(f"key {error} is missing") from None
    except TypeError as error:
        raise ValueError(str(error)) from None
    if metric.scope not in get_args(Scope):
        raise ValueError(f"unknown scope {metric.scope!r}")
    if not math.isfinite(metric.value):
        raise ValueError(f"value {metric.value} is not finite")
    return metric


def read_metrics(path: Path) -> list[Metric]:
    """Read ``metrics.jsonl`` in file order; a last line torn by a crash is left out.

    Raises
    ------
    UserError
        If any line before the last is broken.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    metrics = []
    for number, line in enumerate(lines, start=1):
        try:
            metrics.append(from_line(line))
        except ValueError as error:
            if number < len(lines):
                raise UserError(f"{path}: line {number} is not a metric ({error}); remove that line") from error
    return metrics


def truncate_metrics(path: Path, after_phase: str, after_round: int, phase_order: Sequence[str]) -> None:
    """Drop the lines later than the checkpoint of (``after_phase``, ``after_round``), and a torn last line.

    Raises
    ------
    UserError
        If the file or the checkpoint names a phase that is not in ``phase_order``.
    """
    order = {phase: index for index, phase in enumerate(phase_order)}
    metrics = read_metrics(path)
    for phase in [after_phase, *(metric.phase for metric in metrics)]:
        if phase not in order:
            known = ", ".join(phase_order)
            raise UserError(f"{path}: phase {phase!r} is not one of this method's ({known}); resume with its method")
    checkpoint = (order[after_phase], after_round)
    kept = [metric for metric in metrics if (order[metric.phase], metric.round) <= checkpoint]
    write_text_atomic(path, "".join(to_line(metric) + "\n" for metric in kept))


class MetricsLog:
    """Observer that appends every round's metrics to a file.

    A run that goes on from a checkpoint cuts the file there first, with ``truncate_metrics``.

    Parameters
    ----------
    path : Path
        The file, ``metrics.jsonl`` of a run directory; made when missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None

    def run_started(self, plan: Sequence[PhasePlan], resumed_after: tuple[str, int] | None) -> None:
        """Open the file."""
        self._file = self._path.open("a", encoding="utf-8")

    def round_ended(self, report: RoundReport) -> None:
        """Append the round's metrics, all or, when one is not finite, none.

        Raises
        ------
        UserError
            If a value is NaN or infinite.
        """
        if self._file is None:
            raise RuntimeError("round_ended before run_started")
        self._file.write("".join(to_line(metric) + "\n" for metric in report.metrics))
        self._file.flush()

    def run_ended(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
