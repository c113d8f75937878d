"""Plural RLHF: groups reward a language model's answers, and what they agree on is a choice (Srewa et al. 2025).

PluralLLM's phases train the predictor that each group scores with (arXiv 2503.09925); then a policy on the server
answers public questions and learns from rewards that are aggregated over groups (arXiv 2512.08786, 2604.04261).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from fedalign.data.schema import SurveyShard
from fedalign.methods.base import Phase, Setting
from fedalign.methods.option_policy import OptionPolicySpec
from fedalign.methods.plural_policy import PluralPolicyPhase
from fedalign.methods.pluralllm import PluralLLM
from fedalign.methods.public_questions import read_questions
from fedalign.methods.survey import ALIGNMENT, SurveyMethod, SurveyPhase
from fedalign.models.gpo import GPOModel
from fedalign.objectives.reward_aggregation import RewardAggregation


@dataclass(frozen=True)
class PluralRLHF(SurveyMethod):
    """Settings of plural RLHF.

    Parameters
    ----------
    name : str
    predictor : PluralLLM
        Its phases come first, for ``federation.rounds`` rounds.
    aggregation : RewardAggregation
        How rewards of several groups become one.
    groups : tuple of str or None
        Who may reward; None takes whoever does, which neither a secure sum nor noise can cover.
    questions : str or None
        A file of public questions; None takes the survey's, where they are known.
    held_out : float
        Share of the questions, the last of them, that are never asked in training.
    context_questions : int
        Answers that a group's predictor is told when it scores.
    policy : OptionPolicySpec
    """

    model: ClassVar[type[GPOModel]] = GPOModel

    name: str
    predictor: PluralLLM
    aggregation: RewardAggregation
    groups: tuple[str, ...] | None
    questions: str | None
    held_out: Annotated[float, Field(ge=0, lt=1)]
    context_questions: Annotated[int, Field(ge=1)]
    policy: OptionPolicySpec

    @property
    def headline(self) -> str:
        """Score of the worst training group on questions that the policy was never asked in training."""
        return f"test/{ALIGNMENT}_worst"

    def phases(self, setting: Setting) -> Sequence[Phase[SurveyShard]]:
        """Return the predictor's phases, then the policy's.

        Raises
        ------
        UserError
            If the file of questions cannot be read.
        """
        first = self.predictor.phases(setting)
        predictor = first[-1]
        assert isinstance(predictor, SurveyPhase)
        questions = list(setting.questions.values()) if self.questions is None else read_questions(Path(self.questions))
        return [*first, PluralPolicyPhase(self, predictor, setting, questions)]
