"""Where a run's metrics go besides metrics.jsonl: nowhere, TensorBoard or Weights & Biases."""

from __future__ import annotations

import hashlib
import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from fedalign.errors import UserError
from fedalign.federation.observer import Observer, PhasePlan, RoundReport

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Logger(ABC):
    """A place that metrics are sent to; one subclass a service, a frozen dataclass of its settings."""

    @abstractmethod
    def open(self, directory: Path, run_name: str, config: Mapping[str, Any]) -> Observer:
        """Return the observer that sends a run's metrics there.

        Parameters
        ----------
        directory : Path
            The run directory.
        run_name : str
            What people call the run.
        config : mapping
            The resolved configuration, shown with the run.

        Raises
        ------
        UserError
            If the service's package is not installed.
        """


@dataclass(frozen=True)
class NoLogger(Logger):
    """Nothing besides metrics.jsonl."""

    def open(self, directory: Path, run_name: str, config: Mapping[str, Any]) -> Observer:
        """Return an observer that does nothing."""
        return _Silent()


@dataclass(frozen=True)
class TensorBoardLogger(Logger):
    """TensorBoard event files in ``<run>/tensorboard``.

    Parameters
    ----------
    per_group : bool
        Also write each group's curves.
    """

    per_group: bool

    def open(self, directory: Path, run_name: str, config: Mapping[str, Any]) -> Observer:
        """Return the observer that writes event files."""
        return _TensorBoard(directory / "tensorboard", run_name, config, self.per_group)


@dataclass(frozen=True)
class WandbLogger(Logger):
    """A Weights & Biases run.

    Parameters
    ----------
    project : str
    entity : str or None
        User or team; None for the account's own.
    mode : {"offline", "online"}
        ``offline`` writes to ``<run>/wandb``, to be sent later with ``wandb sync``.
    per_group : bool
        Also send each group's curves.
    """

    project: str
    entity: str | None
    mode: Literal["offline", "online"]
    per_group: bool

    def open(self, directory: Path, run_name: str, config: Mapping[str, Any]) -> Observer:
        """Start the run at the service, or go on with it when this directory had one.

        Raises
        ------
        UserError
            If the package wandb is not installed.
        """
        try:
            wandb = importlib.import_module("wandb")
        except ImportError as error:
            raise UserError(
                "logger=wandb: the package wandb is not installed; run pip install 'fedalign[wandb]', "
                "or use logger=tensorboard"
            ) from error
        # An id from the directory, so that a resumed run goes on in the same curves.
        identity = hashlib.blake2b(str(directory.resolve()).encode(), digest_size=8).hexdigest()
        run = wandb.init(
            project=self.project,
            entity=self.entity,
            mode=self.mode,
            name=run_name,
            id=identity,
            resume="allow" if self.mode == "online" else None,
            dir=str(directory),
            config=dict(config),
        )
        return _Wandb(run, self.per_group)


class _Steps:
    """Cumulative rounds: round r of a phase comes after all rounds of the phases before it."""

    def __init__(self, plan: Sequence[PhasePlan]) -> None:
        self._offset: dict[str, int] = {}
        rounds = 0
        for phase in plan:
            self._offset[phase.name] = rounds
            rounds += phase.rounds

    def __call__(self, phase: str, round: int) -> int:
        return self._offset[phase] + round


def _tagged(report: RoundReport, per_group: bool) -> Iterator[tuple[str, float]]:
    """Yield (scope/name[/group], value) of a round's metrics."""
    for metric in report.metrics:
        if metric.group is None:
            yield f"{metric.scope}/{metric.name}", metric.value
        elif per_group:
            yield f"{metric.scope}/{metric.name}/{metric.group}", metric.value


class _Silent:
    """Observer that does nothing."""

    def run_started(self, plan: Sequence[PhasePlan], resumed_after: tuple[str, int] | None) -> None:
        pass

    def round_ended(self, report: RoundReport) -> None:
        pass

    def run_ended(self) -> None:
        pass


class _TensorBoard:
    """Observer that writes scalars, at cumulative rounds, and the configuration as text."""

    def __init__(self, directory: Path, run_name: str, config: Mapping[str, Any], per_group: bool) -> None:
        self._directory = directory
        self._title = run_name
        self._config = config
        self._per_group = per_group
        self._writer: SummaryWriter | None = None

    def run_started(self, plan: Sequence[PhasePlan], resumed_after: tuple[str, int] | None) -> None:
        # Imported here: TensorBoard takes seconds to import, and most runs do not use it.
        from torch.utils.tensorboard import SummaryWriter

        self._step = _Steps(plan)
        # Events later than the checkpoint are hidden, as their lines are dropped from metrics.jsonl.
        purge = None if resumed_after is None else self._step(*resumed_after) + 1
        self._writer = SummaryWriter(str(self._directory), purge_step=purge)
        text = yaml.safe_dump(dict(self._config), sort_keys=False)
        self._writer.add_text(self._title, "\n".join("    " + line for line in text.splitlines()))

    def round_ended(self, report: RoundReport) -> None:
        if self._writer is None:
            raise RuntimeError("round_ended before run_started")
        for tag, value in _tagged(report, self._per_group):
            self._writer.add_scalar(tag, value, self._step(report.phase, report.round))
        self._writer.flush()

    def run_ended(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class _Wandb:
    """Observer that logs to an open Weights & Biases run, at cumulative rounds."""

    def __init__(self, run: Any, per_group: bool) -> None:
        self._run = run
        self._per_group = per_group

    def run_started(self, plan: Sequence[PhasePlan], resumed_after: tuple[str, int] | None) -> None:
        self._step = _Steps(plan)

    def round_ended(self, report: RoundReport) -> None:
        self._run.log(dict(_tagged(report, self._per_group)), step=self._step(report.phase, report.round))

    def run_ended(self) -> None:
        self._run.finish()
