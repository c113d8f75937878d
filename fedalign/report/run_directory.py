"""The directory that a run leaves behind: its files, how they are written and how they are read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fedalign.errors import UserError
from fedalign.metrics.record import Metric
from fedalign.report import metrics_log
from fedalign.report.atomic import write_json_atomic, write_text_atomic
from fedalign.report.heartbeat import Heartbeat
from fedalign.report.summary import Summary


@dataclass(frozen=True)
class RunDirectory:
    """One run's directory. Make one with ``create`` (to write a run) or ``open`` (to read one)."""

    path: Path

    @classmethod
    def create(cls, path: Path, *, resume: bool = False) -> RunDirectory:
        """Make the directory of a new run, or with ``resume`` go on in the directory of an old one.

        Raises
        ------
        UserError
            If ``path`` is a file, cannot be made, holds anything (without ``resume``) or is no run (with it).
        """
        if resume:
            return cls.open(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            occupied = any(path.iterdir())
        except OSError as error:
            raise UserError(f"output={path}: cannot make the directory ({error.strerror}); choose another") from error
        if occupied:
            raise UserError(f"output={path}: the directory is not empty; choose another, or go on with resume={path}")
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Return the directory of an existing run.

        Raises
        ------
        UserError
            If there is no directory at ``path``, or it has no config.yaml.
        """
        if not path.is_dir():
            raise UserError(f"{path}: no such directory; give the directory of a run")
        directory = cls(path)
        if not directory.config_file.is_file():
            raise UserError(f"{path}: not a run directory (no config.yaml); give the directory that holds one")
        return directory

    @property
    def config_file(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def environment_file(self) -> Path:
        """Versions, commit, seed and machine."""
        return self.path / "environment.json"

    @property
    def metrics_file(self) -> Path:
        """One metric a line."""
        return self.path / "metrics.jsonl"

    @property
    def summary_file(self) -> Path:
        """The outcome; missing while the run goes on."""
        return self.path / "summary.json"

    @property
    def status_file(self) -> Path:
        """How far the run is, and who writes it."""
        return self.path / "status.json"

    @property
    def checkpoints(self) -> Path:
        """Directory of checkpoints."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """Directory of the final artefact."""
        return self.path / "model"

    @property
    def plots(self) -> Path:
        """Directory of PNG plots."""
        return self.path / "plots"

    @property
    def report_file(self) -> Path:
        """The self-contained report."""
        return self.path / "report.html"

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the resolved configuration, keys in their order."""
        write_text_atomic(self.config_file, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))

    def write_environment(self, environment: Mapping[str, Any]) -> None:
        """Write what ``fedalign.report.environment`` found."""
        write_json_atomic(self.environment_file, dict(environment))

    def write_summary(self, summary: Summary) -> None:
        """Write the outcome."""
        write_json_atomic(self.summary_file, summary.to_json())

    def read_config(self) -> dict[str, Any]:
        """Read the resolved configuration.

        Raises
        ------
        UserError
            If the file is not a YAML mapping.
        """
        try:
            content = yaml.safe_load(self.config_file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{self.config_file}: not valid YAML ({reason}); the file is damaged") from error
        if not isinstance(content, dict):
            raise UserError(f"{self.config_file}: expected a mapping, found {type(content).__name__}")
        return content

    def read_environment(self) -> dict[str, Any]:
        """Read the environment; empty when the run died before it wrote one.

        Raises
        ------
        UserError
            If the file is broken.
        """
        if not self.environment_file.exists():
            return {}
        content = _read_json(self.environment_file)
        if not isinstance(content, dict):
            raise UserError(f"{self.environment_file}: expected an object, found {type(content).__name__}")
        return content

    def read_summary(self) -> Summary:
        """Read the outcome.

        Raises
        ------
        UserError
            If the run has not ended (no summary.json), or the file is broken.
        """
        if not self.summary_file.exists():
            raise UserError(f"{self.path}: no summary.json, the run has not ended; go on with resume={self.path}")
        return Summary.from_json(_read_json(self.summary_file), str(self.summary_file))

    def read_status(self) -> Heartbeat | None:
        """Read how far the run said it was; None when it never did.

        Raises
        ------
        UserError
            If the file is broken.
        """
        if not self.status_file.exists():
            return None
        return Heartbeat.from_json(_read_json(self.status_file), str(self.status_file))

    def read_metrics(self) -> list[Metric]:
        """Read metrics.jsonl; a last line torn by a crash is left out.

        Raises
        ------
        UserError
            If any other line is broken.
        """
        return metrics_log.read_metrics(self.metrics_file)

    def truncate_metrics(self, after_phase: str, after_round: int, phase_order: Sequence[str]) -> None:
        """Drop metrics later than a checkpoint; see ``metrics_log.truncate_metrics``."""
        metrics_log.truncate_metrics(self.metrics_file, after_phase, after_round, phase_order)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); the file is damaged, run again") from error
