"""Use what was trained: predictions for a new group or person, and texts that follow a preference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from fedalign.config import RunConfig, parse
from fedalign.errors import UserError
from fedalign.methods.base import Method
from fedalign.methods.dprlhf import DPRLHF
from fedalign.methods.emdpo import EMDPO
from fedalign.methods.pairs import PairMethod
from fedalign.methods.pcm import PCM
from fedalign.methods.survey import SurveyMethod
from fedalign.opened_run import OpenedRun
from fedalign.predict_pairs import predict_choices
from fedalign.predict_rankings import predict_rankings
from fedalign.predict_rewards import predict_rewards
from fedalign.predict_stages import write_stages
from fedalign.predict_stated import write_stated
from fedalign.predict_survey import Prediction, predict_shares
from fedalign.predict_text import TextRequest, read_prompts, write_texts
from fedalign.predict_types import write_types
from fedalign.report.run_directory import RunDirectory
from fedalign.stated_texts import weights_page

_T = TypeVar("_T")


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
    EMDPO: predict_rankings,
}
_WRITERS: Mapping[type, Callable[[OpenedRun, TextRequest], Sequence[Text]]] = {
    DPRLHF: write_stages,
    EMDPO: write_types,
    PCM: write_stated,
}


def predict(run: Path, answers: Path) -> Sequence[Choice]:
    """Predict what a file leaves open from what it tells.

    Parameters
    ----------
    run : Path
        Directory of a finished run.
    answers : Path
        For survey methods a group's answers, see :func:`fedalign.predict_survey.predict_shares`; for pair methods a
        person's judgments, see :func:`fedalign.predict_pairs.predict_choices`; for methods with types of annotators an
        annotator's, see :func:`fedalign.predict_rankings.predict_rankings`; for alignment by reinforcement learning
        responses to be scored, see :func:`fedalign.predict_rewards.predict_rewards`.

    Raises
    ------
    UserError
        If the run has no such model, or the file is malformed, tells nothing or asks nothing.
    """
    directory, config = _read(run)
    predictor = _serving(config.method, _PREDICTORS)
    if predictor is None:
        raise UserError(f"{run}: method '{config.method.name}' predicts nothing from a file")
    return predictor(OpenedRun.of(directory, config), answers)


def write(run: Path, request: TextRequest) -> Sequence[Text]:
    """Let a run's policy continue prompts.

    See :func:`fedalign.predict_text.write_texts` for policies that follow preferences,
    :func:`fedalign.predict_stages.write_stages` for those that were trained in stages,
    :func:`fedalign.predict_types.write_types` for those of types of annotators, and
    :func:`fedalign.predict_stated.write_stated` for experts that are merged.
    """
    directory, config = _read(run)
    if (request.weights or request.on_piece is not None) and not isinstance(config.method, PCM):
        raise UserError(
            f"--stream and --weights are for merged experts, and this is a run of '{config.method.name}'; leave them "
            "out, or use a run of method=pcm"
        )
    opened = OpenedRun.of(directory, config)
    return (_serving(opened.config.method, _WRITERS) or write_texts)(opened, request)


def _serving(method: Method, known: Mapping[type, _T]) -> _T | None:
    """Return what serves a method, by its class."""
    return next((served for kind, served in known.items() if isinstance(method, kind)), None)


def _read(run: Path) -> tuple[RunDirectory, RunConfig]:
    directory = RunDirectory.open(run)
    return directory, parse(directory.read_config())


__all__ = ["Choice", "Prediction", "Text", "TextRequest", "predict", "read_prompts", "weights_page", "write"]
