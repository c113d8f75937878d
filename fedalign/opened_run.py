"""A finished run that is used: its configuration, its method's phases, and their final states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedalign.config import RunConfig
from fedalign.contribution import State
from fedalign.methods.base import Phase
from fedalign.model_files import load_model
from fedalign.report.run_directory import RunDirectory
from fedalign.site import setting


@dataclass(frozen=True)
class OpenedRun:
    """A finished run.

    Parameters
    ----------
    path : Path
    config : RunConfig
    phases : sequence of Phase
    states : mapping from phase name to State
    """

    path: Path
    config: RunConfig
    phases: Sequence[Phase[Any]]
    states: Mapping[str, State]

    @classmethod
    def of(cls, directory: RunDirectory, config: RunConfig) -> OpenedRun:
        """Build the phases and read their final states.

        Raises
        ------
        UserError
            If the run has no finished model, or it is another method's.
        """
        states = load_model(directory.model, config.method.name)
        return cls(directory.path, config, config.method.phases(setting(config)), states)
