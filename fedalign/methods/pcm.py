"""PCM: expert models, merged token by token by a small control model from a stated preference.

Zhou et al., "Orchestrating LLMs with Different Personalizations" (arXiv 2407.04181, where it is called MoPE). Experts
are public and frozen; prompts, preferences and judgments are the clients' own. What it is compared with, such as the
mean of the experts' parameters, is another ``merging`` of the same experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from fedalign.data.federated import Kind
from fedalign.methods.base import Method, Phase, Setting
from fedalign.methods.expert_source import ExpertSource
from fedalign.methods.merging import Merging
from fedalign.methods.stated_evaluation import StatedEvaluation
from fedalign.methods.stated_preference import Dimension, Preferences
from fedalign.methods.text_lengths import Lengths
from fedalign.models.base import ModelSpec
from fedalign.models.language_model import LanguageModelSpec


@dataclass(frozen=True)
class PCM(Method):
    """Settings of PCM and of what it is compared with.

    Parameters
    ----------
    name : str
    lengths : Lengths
    dimensions : mapping from name to Dimension
        What can be stated, and who the experts are.
    experts : ExpertSource
    top_tokens : int or None
        Of an expert's next tokens, how many are known, as from a service that gives no more; None is all.
    floor : float
        Probability that is then spread over the vocabulary.
    merging : Merging
    evaluation : StatedEvaluation
    """

    kind: ClassVar[Kind] = Kind.CORPUS
    model: ClassVar[type[ModelSpec]] = LanguageModelSpec

    name: str
    lengths: Lengths
    dimensions: Mapping[str, Dimension]
    experts: ExpertSource
    top_tokens: Annotated[int, Field(ge=1)] | None
    floor: Annotated[float, Field(gt=0, lt=1)]
    merging: Merging
    evaluation: StatedEvaluation

    def __post_init__(self) -> None:
        """Check what goes together."""
        Preferences(self.dimensions)
        self.merging.check(self)

    @property
    def headline(self) -> str:
        """Mean over preferences of the reward of texts to test prompts."""
        return "unseen/reward"

    @property
    def selection(self) -> str:
        """Mean reward of the texts of training."""
        return "train/reward"

    def phases(self, setting: Setting) -> Sequence[Phase[Any]]:
        """Return the phases that train experts, if any, and those that merge them."""
        return [*self.experts.phases(self, setting), *self.merging.phases(self, setting)]
