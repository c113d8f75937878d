"""Private alignment by reinforcement learning, federated: fine-tuning, a reward model, and PPO (arXiv 2310.16960).

Three stages on one language model, each a federated phase on users of its own and each usable alone. Without people
in the loop a reward is given (a sentiment model); with them, the second stage learns it from preferences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedalign.data.corpus import CorpusShard
from fedalign.data.federated import Kind
from fedalign.errors import UserError
from fedalign.methods.base import Method, Phase, Setting
from fedalign.methods.preference_scores import RewardModelPhase, RewardModelTraining
from fedalign.methods.rl import RLPhase
from fedalign.methods.rl_training import RLTraining
from fedalign.methods.sft import SftPhase, SftTraining
from fedalign.methods.text_evaluation import TextEvaluation
from fedalign.methods.text_lengths import Lengths
from fedalign.methods.text_reward import Learnt, TextReward
from fedalign.models.base import ModelSpec
from fedalign.models.language_model import LanguageModelSpec


@dataclass(frozen=True)
class DPRLHF(Method):
    """Settings of private alignment by reinforcement learning.

    Parameters
    ----------
    name : str
    lengths : Lengths
    reward : TextReward or None
        What a response is worth; None, or ``Learnt``, is what the reward model has learnt.
    sft : SftTraining or None
        None begins at the pretrained model.
    reward_model : RewardModelTraining or None
    rl : RLTraining or None
    evaluation : TextEvaluation
    """

    kind: ClassVar[Kind] = Kind.CORPUS
    model: ClassVar[type[ModelSpec]] = LanguageModelSpec

    name: str
    lengths: Lengths
    reward: TextReward | None
    sft: SftTraining | None
    reward_model: RewardModelTraining | None
    rl: RLTraining | None
    evaluation: TextEvaluation

    def __post_init__(self) -> None:
        """Check that there is something to do, and a reward to do it for.

        Raises
        ------
        UserError
            Naming the blocks.
        """
        if isinstance(self.reward, Learnt):
            # One way to say it from here on.
            object.__setattr__(self, "reward", None)
        if self.sft is None and self.reward_model is None and self.rl is None:
            raise UserError("method.sft, method.reward_model and method.rl are all null; set one of them")
        if self.rl is not None and self.reward is None and self.reward_model is None:
            raise UserError(
                "method.rl needs a reward: choose one (method/reward=vader), or set method.reward_model "
                "to learn one from preferences"
            )
        if self.reward is not None and self.reward_model is not None and self.rl is not None:
            raise UserError(
                "method.reward and method.reward_model are both set, and a policy follows one of them; set "
                "method/reward=learnt or method.reward_model=null"
            )

        if self.reward is not None and self.reward == self.evaluation.judge:
            raise UserError(
                "method.evaluation.judge is method.reward: the policy has learnt to please it; choose another or null"
            )

    @property
    def headline(self) -> str:
        """Mean reward of responses to test prompts, or what the last stage is scored by."""
        if self.rl is not None:
            return "unseen/reward"
        return "unseen/accuracy" if self.reward_model is not None else "unseen/test_nll"

    @property
    def selection(self) -> str:
        """The policy's mean reward in training."""
        return "train/reward"

    def phases(self, setting: Setting) -> Sequence[Phase[CorpusShard]]:
        """Return the stages that are set, in order."""
        found: list[Phase[CorpusShard]] = []
        if self.sft is not None:
            found.append(SftPhase(self, self.sft, setting))
        if self.reward_model is not None:
            found.append(RewardModelPhase(self, self.reward_model, setting))
        if self.rl is not None:
            found.append(RLPhase(self, self.rl, setting))
            if self.reward is None and found[-1].rounds and not found[-2].rounds:
                raise UserError(
                    "method.reward_model.rounds=0: the policy would follow a reward that has learnt nothing; raise it"
                )
        return found
