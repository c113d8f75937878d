"""Use what was trained: predictions for a new group or person, and texts that follow a preference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from fedalign.config import RunConfig, parse
from fedalign.errors import UserError
from fedalign.methods.pairs import PairMethod
from fedalign.methods.survey import SurveyMethod
from fedalign.opened_run import OpenedRun
from fedalign.predict_pairs import predict_choices
from fedalign.predict_survey import Prediction, predict_shares
from fedalign.predict_text import TextRequest, WrittenText, read_prompts, write_texts
from fedalign.report.run_directory import RunDirectory


class Choice(Protocol):
    """Something with options, and how likely each is.

    Attributes
    ----------
    titles : (str, str, str)
        What question, options and shares are called.
    """

    @property
    def titles(self) -> tuple[str, str, str]: ...  # noqa: D102 - see the class

    @property
    def question(self) -> str: ...  # noqa: D102 - see the class

    @property
    def options(self) -> tuple[str, ...]: ...  # noqa: D102 - see the class

    @property
    def shares(self) -> tuple[float, ...]: ...  # noqa: D102 - see the class

    def to_json(self) -> dict[str, Any]:
        """Return the prediction as plain data."""


_PREDICTORS: Mapping[type, Callable[[OpenedRun, Path], Sequence[Choice]]] = {
    SurveyMethod: predict_shares,
    PairMethod: predict_choices,
}


def predict(run: Path, answers: Path) -> Sequence[Choice]:
    """Predict what a file leaves open from what it tells.

    Parameters
    ----------
    run : Path
        Directory of a finished run.
    answers : Path
        For survey methods a group's answers, see :func:`fedalign.predict_survey.predict_shares`; for pair methods a
        person's judgments, see :func:`fedalign.predict_pairs.predict_choices`.

    Raises
    ------
    UserError
        If the run has no such model, or the file is malformed, tells nothing or asks nothing.
    """
    directory, config = _read(run)
    predictor = next((p for kind, p in _PREDICTORS.items() if isinstance(config.method, kind)), None)
    if predictor is None:
        raise UserError(f"{run}: method '{config.method.name}' does not predict survey answers or judgments")
    return predictor(OpenedRun.of(directory, config), answers)


def write(run: Path, request: TextRequest) -> list[WrittenText]:
    """Let a run's policy continue prompts; see :func:`fedalign.predict_text.write_texts`."""
    return write_texts(OpenedRun.of(*_read(run)), request)


def _read(run: Path) -> tuple[RunDirectory, RunConfig]:
    directory = RunDirectory.open(run)
    return directory, parse(directory.read_config())


__all__ = ["Choice", "Prediction", "TextRequest", "WrittenText", "predict", "read_prompts", "write"]
