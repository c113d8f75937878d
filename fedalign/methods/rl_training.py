"""Settings of reinforcement learning, and which of them go together under a guarantee."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from fedalign.errors import UserError
from fedalign.methods.base import Setting
from fedalign.methods.corpus import Stage
from fedalign.methods.kl_control import AdaptiveKL
from fedalign.methods.policy_gradient import Algorithm
from fedalign.methods.text_reward import TextReward
from fedalign.privacy.local import KEY as LOCAL

KEY = "method.rl"


@dataclass(frozen=True)
class RLTraining(Stage):
    """Settings of reinforcement learning; the ``rl`` block of the method.

    Parameters
    ----------
    rounds, batch, user_examples, local
        See :class:`fedalign.methods.corpus.Stage`; an example is a prompt.
    algorithm : Algorithm
    beta : float
        Weight of the divergence from the policy that this stage begins with.
    adaptive : AdaptiveKL or None
        Lets the weight follow the divergence; None keeps it, which a guarantee demands.
    reward_scale : float
        Factor of rewards; a constant, because statistics of rewards would be data. ``beta`` is weighed against the
        scaled reward.
    temperature : float
        Of the responses that are learnt from; probabilities of policy and reference are those at this temperature.
    """

    algorithm: Algorithm
    beta: Annotated[float, Field(ge=0)]
    adaptive: AdaptiveKL | None
    reward_scale: Annotated[float, Field(gt=0)]
    temperature: Annotated[float, Field(gt=0)]


def check_rl(settings: RLTraining, reward: TextReward | None, setting: Setting) -> None:
    """Refuse what does not go together, and what would let one prompt reach what another adds where nobody may.

    Raises
    ------
    UserError
        Naming the setting and the fix.
    """
    algorithm = settings.algorithm
    if algorithm.minibatches > settings.batch:
        raise UserError(
            f"{KEY}.algorithm.minibatches={algorithm.minibatches} of {KEY}.batch={settings.batch} prompts; lower it"
        )
    per_batch = algorithm.epochs * algorithm.minibatches
    if settings.local.steps % per_batch:
        raise UserError(
            f"{KEY}.local.steps={settings.local.steps}: responses serve {per_batch} steps "
            f"({KEY}.algorithm.epochs times {KEY}.algorithm.minibatches); set a multiple of that"
        )
    if settings.adaptive is not None and setting.private:
        raise UserError(
            f"{KEY}.adaptive: a weight that follows the divergence tells of the prompts past the noise; set "
            f"{KEY}.adaptive=null"
        )
    if setting.local_privacy is None:
        return
    if per_batch > 1:
        raise UserError(
            f"{LOCAL}: {KEY}.algorithm.epochs={algorithm.epochs} and {KEY}.algorithm.minibatches="
            f"{algorithm.minibatches} use a prompt more often than its step is charged for; set both to 1"
        )
    if algorithm.couples:
        raise UserError(
            f"{LOCAL}: {KEY}.algorithm.whiten=true lets every prompt reach the gradients of all; set it to false"
        )
    if reward is not None and not reward.exact:
        raise UserError(
            f"{LOCAL}: method.reward scores texts together, and how one is rounded depends on the others; set "
            "method.reward.batch_size=1"
        )
