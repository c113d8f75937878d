"""Use what was trained: predictions for a new group or person, and texts that follow a preference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from fedalign.config import RunConfig, parse
from fedalign.errors import UserError
from fedalign.methods.dprlhf import DPRLHF
from fedalign.methods.pairs import PairMethod
from fedalign.methods.survey import SurveyMethod
from fedalign.opened_run import OpenedRun
from fedalign.predict_pairs import predict_choices
from fedalign.predict_rewards import predict_rewards
from fedalign.predict_stages import write_stages
from fedalign.predict_survey import Prediction, predict_shares
from fedalign.predict_text import TextRequest, read_prompts, write_texts
from fedalign.report.run_directory import RunDirectory


class Choice(Protocol):
    """Something with options, and a number for each: how likely it is, or what it is worth.

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


class Text(Protocol):
    """A continuation of a prompt, and the column that it is shown in."""

    @property
    def prompt(self) -> str: ...  # noqa: D102 - see the class

    @property
    def label(self) -> str: ...  # noqa: D102 - see the class

    @property
    def shown(self) -> str: ...  # noqa: D102 - see the class

    def to_json(self) -> dict[str, Any]:
        """Return the text as plain data."""


_PREDICTORS: Mapping[type, Callable[[OpenedRun, Path], Sequence[Choice]]] = {
    SurveyMethod: predict_shares,
    PairMethod: predict_choices,
    DPRLHF: predict_rewards,
}


def predict(run: Path, answers: Path) -> Sequence[Choice]:
    """Predict what a file leaves open from what it tells.

    Parameters
    ----------
    run : Path
        Directory of a finished run.
    answers : Path
        For survey methods a group's answers, see :func:`fedalign.predict_survey.predict_shares`; for pair methods a
        person's judgments, see :func:`fedalign.predict_pairs.predict_choices`; for alignment by reinforcement learning
        responses to be scored, see :func:`fedalign.predict_rewards.predict_rewards`.

    Raises
    ------
    UserError
        If the run has no such model, or the file is malformed, tells nothing or asks nothing.
    """
    directory, config = _read(run)
    predictor = next((p for kind, p in _PREDICTORS.items() if isinstance(config.method, kind)), None)
    if predictor is None:
        raise UserError(f"{run}: method '{config.method.name}' predicts nothing from a file")
    return predictor(OpenedRun.of(directory, config), answers)


def write(run: Path, request: TextRequest) -> Sequence[Text]:
    """Let a run's policy continue prompts.

    See :func:`fedalign.predict_text.write_texts` for policies that follow preferences, and
    :func:`fedalign.predict_stages.write_stages` for those that were trained in stages.
    """
    opened = OpenedRun.of(*_read(run))
    writer = write_stages if isinstance(opened.config.method, DPRLHF) else write_texts
    return writer(opened, request)


def _read(run: Path) -> tuple[RunDirectory, RunConfig]:
    directory = RunDirectory.open(run)
    return directory, parse(directory.read_config())


__all__ = ["Choice", "Prediction", "Text", "TextRequest", "predict", "read_prompts", "write"]
