"""EM-DPO: latent types of annotators, found by EM over rankings; its baselines are settings of the same method.

Chidambaram, Seetharaman and Syrgkanis (arXiv 2405.15065, 2510.15716). Types are adapters on one language model, or
reward networks on the vectors of a frozen encoder, as the model says; all else is the same code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from fedalign.data.federated import Kind
from fedalign.errors import UserError
from fedalign.methods.base import Method, Phase, Setting
from fedalign.methods.collapse import Collapse
from fedalign.methods.em import EMPhase
from fedalign.methods.fairness import Mixing, NoMixture
from fedalign.methods.local_training import LocalTraining
from fedalign.methods.ranking_folds import Folds
from fedalign.methods.ranking_phase import ACCURACY, LIKELIHOOD, RankingEvaluation
from fedalign.methods.single_policy import NoSingle, Single
from fedalign.methods.start_phase import Signatures, StartPhase
from fedalign.methods.text_lengths import Lengths
from fedalign.methods.type_adapters import AdapterTypes
from fedalign.methods.type_assignment import TypeAssignment
from fedalign.methods.type_heads import HeadTypes
from fedalign.methods.type_model import TypeModel
from fedalign.methods.type_start import ClusteredStart, Start
from fedalign.models.language_model import LanguageModelSpec
from fedalign.models.utility import UtilitySpec


@dataclass(frozen=True)
class EMDPO(Method):
    """Settings of EM-DPO and of what it is compared with.

    Parameters
    ----------
    name : str
    types : int
        Number K of latent types.
    start : Start
    assignment : TypeAssignment
        The E-step.
    folds : Folds
    top : int
        Types that a client trains in a round, at most: those with the most weight.
    least_share : float
        Types with no more than this share of a client's judgments are not trained there.
    least_mass : float
        What a type's mean change is divided by, at least, in clients (or judgments, as ``weight`` says).
    prior_rate : float
        How far the shares of types move to those of a round.
    weight : {"uniform", "judgments"}
        A client's weight in the mean of a type.
    batch : int or None
        Judgments in a gradient step, drawn by their weight; None takes all, weighted.
    beta : float
        Of language models: DPO's pull to the frozen model.
    likelihood : float
        Of language models: weight of the best response's negative log-likelihood, in nats a token; 0 is DPO alone.
    lengths : Lengths
        Of language models: how many tokens are read.
    local : LocalTraining
    collapse : Collapse
    fair : Mixing
        What becomes of the types for those of whom nothing is known: MMRA, and what it is compared with.
    single : Single
        One network in place of the mixture.
    evaluation : RankingEvaluation
    """

    kind: ClassVar[Kind] = Kind.RANKINGS

    name: str
    types: Annotated[int, Field(ge=1)]
    start: Start
    assignment: TypeAssignment
    folds: Folds
    top: Annotated[int, Field(ge=1)]
    least_share: Annotated[float, Field(ge=0, lt=1)]
    least_mass: Annotated[float, Field(gt=0)]
    prior_rate: Annotated[float, Field(ge=0, le=1)]
    weight: Literal["uniform", "judgments"]
    batch: Annotated[int, Field(ge=1)] | None
    beta: Annotated[float, Field(gt=0)]
    likelihood: Annotated[float, Field(ge=0)]
    lengths: Lengths
    local: LocalTraining
    collapse: Collapse
    fair: Mixing
    single: Single
    evaluation: RankingEvaluation

    def __post_init__(self) -> None:
        """Check what goes together."""
        self.assignment.check(self.types)
        if self.assignment.needs_clusters and not isinstance(self.start, ClusteredStart):
            raise UserError(
                f"method.assignment={type(self.assignment).__name__} keeps the clusters of the start, and "
                f"method.start={type(self.start).__name__} makes none; take method/start=probe or method/start=deltas"
            )
        if self.assignment.reads_likelihood:
            self.start.check_types(self.types)
        if self.types == 1 and not isinstance(self.single, NoSingle):
            raise UserError("method.types=1 is one network already; set method/single=none, or method.types above 1")
        if isinstance(self.fair, NoMixture) and not isinstance(self.single, NoSingle):
            raise UserError(
                f"method/single={type(self.single).__name__}: there is no mixture to make one network of; set "
                "method/fair=regret, utility or shares"
            )

    @property
    def headline(self) -> str:
        """Accuracy on the training annotators' held-out judgments."""
        return f"test/{ACCURACY}"

    @property
    def selection(self) -> str:
        """Likelihood of training judgments that nothing was trained on; none, where none were kept for it."""
        return f"train/{LIKELIHOOD}"

    def phases(self, setting: Setting) -> Sequence[Phase[Any]]:
        """Return the start, where it asks clients, EM, and what makes one policy of the types."""
        if setting.private and self.weight != "uniform":
            raise UserError(
                f"method.weight={self.weight}: a private sum counts clients the same, and what types are divided by "
                "must agree with that; set method.weight=uniform"
            )
        return self.type_phases(setting, self._model(setting))

    def type_phases(self, setting: Setting, model: TypeModel) -> Sequence[Phase[Any]]:
        """Return the phases that types come from; the last, a RankingPhase called as EM is, leaves them."""
        clustered = isinstance(self.start, ClusteredStart) and self.types > 1
        signatures = Signatures(self.start, model, self.folds) if clustered else None  # type: ignore[arg-type]
        start = [] if signatures is None else [StartPhase(signatures, self.types)]
        em = EMPhase(self, setting, model, signatures)
        # One policy has nothing to be mixed with.
        mixtures = self.fair.phases(self, em) if self.types > 1 else []
        singles = [phase for mixture in mixtures for phase in self.single.phases(mixture)]
        return [*start, em, *mixtures, *singles]

    def _model(self, setting: Setting) -> TypeModel:
        if isinstance(setting.model, LanguageModelSpec):
            return AdapterTypes(setting.model, self.beta, self.lengths)
        if isinstance(setting.model, UtilitySpec):
            return HeadTypes(setting.model, setting.features)
        raise UserError(
            f"method={self.name}: types are adapters on a language model or rewards of single responses, model is a "
            f"{type(setting.model).__name__}; choose model=reward, model=linear_utility or model=gpt2_lora"
        )
