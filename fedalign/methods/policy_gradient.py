"""How responses and their rewards become a loss: PPO with a value head, or other responses as baseline or as rival."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedalign.methods.rollouts import rows_of
from fedalign.models.text import ResponseBatch
from fedalign.objectives.advantages import gae, group_advantages, kl_adjusted_rewards, whiten
from fedalign.objectives.expert_mixture import rebel_loss
from fedalign.objectives.ppo import clipped_policy_loss, value_loss


@dataclass(frozen=True)
class Rollouts:
    """B responses with what they are worth, as they were drawn; S is the width of a response.

    Parameters
    ----------
    tokens : ResponseBatch
    mask : Tensor, shape (B, S)
        1 at tokens of the response.
    log_probs, reference, values : Tensor, shape (B, S)
        The policy's and the reference's log-probabilities in nats, and the value before each token.
    scores : Tensor, shape (B,)
    """

    tokens: ResponseBatch
    mask: Tensor
    log_probs: Tensor
    reference: Tensor
    values: Tensor
    scores: Tensor

    def rows(self, index: Tensor) -> Rollouts:
        """Return the responses at ``index``, int64 of shape (N,)."""
        tokens = rows_of(self.tokens, index)
        rest = (self.mask, self.log_probs, self.reference, self.values, self.scores)
        return Rollouts(tokens, *(each[index] for each in rest))


@dataclass(frozen=True)
class Targets:
    """What a policy is moved towards: constants of the loss.

    Parameters
    ----------
    advantages, returns : Tensor, shape (B, S)
    """

    advantages: Tensor
    returns: Tensor

    def rows(self, index: Tensor) -> Targets:
        """Return those of the responses at ``index``, int64 of shape (N,)."""
        return Targets(self.advantages[index], self.returns[index])


@dataclass(frozen=True)
class Algorithm(ABC):
    """The ``algorithm`` block of ``method.rl``.

    Parameters
    ----------
    epochs : int
        How often the same responses are learnt from (T_PPO); 1 where clients add noise to gradients.
    minibatches : int
        Gradient steps that share the responses of an epoch.
    """

    epochs: Annotated[int, Field(ge=1)]
    minibatches: Annotated[int, Field(ge=1)]

    @property
    def responses(self) -> int:
        """Responses to each prompt."""
        return 1

    @property
    def couples(self) -> bool:
        """Whether one prompt's loss depends on what others of the batch hold."""
        return False

    @property
    def learns_values(self) -> bool:
        """Whether the head is trained."""
        return False

    @abstractmethod
    def targets(self, rollouts: Rollouts, beta: float) -> Targets:
        """Return advantages, from rewards less ``beta`` times the log ratio to the reference."""

    @abstractmethod
    def losses(self, log_probs: Tensor, values: Tensor, rollouts: Rollouts, targets: Targets) -> Tensor:
        """Return the loss of each response at the policy's present log-probabilities and values, shape (B,)."""


@dataclass(frozen=True)
class PPO(Algorithm):
    """Proximal policy optimisation with generalised advantages (Schulman et al. 2017; Wu et al. 2024, algorithm 1).

    Parameters
    ----------
    epochs, minibatches
        See :class:`Algorithm`.
    clip : float
        How far a ratio of probabilities may be from 1 before a gain no longer counts.
    gamma, lam : float
        Discount, and how far GAE looks ahead.
    value_clip : float or None
        How far a value may move before a smaller error no longer counts; None leaves it free.
    value_weight : float
        Weight of the value's loss.
    place : {"last", "token"}
        Where the divergence from the reference is paid.
    whiten : bool
        Whether advantages are normalised over the batch; refused where clients add noise to gradients.
    """

    clip: Annotated[float, Field(gt=0)]
    gamma: Annotated[float, Field(gt=0, le=1)]
    lam: Annotated[float, Field(ge=0, le=1)]
    value_clip: Annotated[float, Field(gt=0)] | None
    value_weight: Annotated[float, Field(ge=0)]
    place: Literal["last", "token"]
    whiten: bool

    @property
    def couples(self) -> bool:
        """Whether advantages are normalised."""
        return self.whiten

    @property
    def learns_values(self) -> bool:
        """Always."""
        return True

    @torch.no_grad()
    def targets(self, rollouts: Rollouts, beta: float) -> Targets:
        """Return generalised advantages, and the returns that values are to foretell."""
        given = (rollouts.log_probs, rollouts.reference, rollouts.mask)
        rewards = kl_adjusted_rewards(rollouts.scores, *given, beta, self.place)
        advantages, returns = gae(rewards, rollouts.values, rollouts.mask, self.gamma, self.lam)
        return Targets(whiten(advantages, rollouts.mask) if self.whiten else advantages, returns)

    def losses(self, log_probs: Tensor, values: Tensor, rollouts: Rollouts, targets: Targets) -> Tensor:
        """Return the clipped surrogate and the weighted error of the values."""
        policy = clipped_policy_loss(log_probs, rollouts.log_probs, targets.advantages, rollouts.mask, self.clip)
        error = value_loss(values, rollouts.values, targets.returns, rollouts.mask, self.value_clip)
        return policy + self.value_weight * error


@dataclass(frozen=True)
class GroupGradient(Algorithm):
    """A policy gradient without a value network: a prompt's other responses are the baseline of each.

    RLOO (Ahmadian et al. 2024) takes their mean; GRPO (Shao et al. 2024) divides by their standard deviation too. A
    prompt with all its responses is one unit, so neither lets one unit reach another.

    Parameters
    ----------
    epochs, minibatches
        See :class:`Algorithm`.
    clip : float
        How far a ratio of probabilities may be from 1 before a gain no longer counts.
    completions : int
        Responses to each prompt.
    baseline : {"rloo", "grpo"}
    """

    clip: Annotated[float, Field(gt=0)]
    completions: Annotated[int, Field(ge=2)]
    baseline: Literal["rloo", "grpo"]

    @property
    def responses(self) -> int:
        """Responses to each prompt."""
        return self.completions

    @torch.no_grad()
    def targets(self, rollouts: Rollouts, beta: float) -> Targets:
        """Return each response's advantage over its prompt's others, at all of its tokens."""
        ratio = ((rollouts.log_probs - rollouts.reference) * rollouts.mask).sum(1)
        rewards = (rollouts.scores - beta * ratio).view(-1, self.completions)
        advantages = group_advantages(rewards, self.baseline).flatten()[:, None] * rollouts.mask
        return Targets(advantages, torch.zeros_like(advantages))

    def losses(self, log_probs: Tensor, values: Tensor, rollouts: Rollouts, targets: Targets) -> Tensor:
        """Return the clipped surrogate."""
        return clipped_policy_loss(log_probs, rollouts.log_probs, targets.advantages, rollouts.mask, self.clip)


@dataclass(frozen=True)
class Rebel(Algorithm):
    """REBEL: the difference of two responses' log-ratios is regressed on that of their rewards (Gao et al. 2024).

    Parameters
    ----------
    epochs, minibatches
        See :class:`Algorithm`.
    eta : float
        Nats of log-ratio that a unit of reward is to become: how far a round may move a policy.
    """

    eta: Annotated[float, Field(gt=0)]

    @property
    def responses(self) -> int:
        """Two responses to each prompt."""
        return 2

    @torch.no_grad()
    def targets(self, rollouts: Rollouts, beta: float) -> Targets:
        """Return each response's reward, less its share of the divergence from the reference, at all of its tokens."""
        ratio = ((rollouts.log_probs - rollouts.reference) * rollouts.mask).sum(1)
        rewards = (rollouts.scores - beta * ratio)[:, None].expand_as(rollouts.mask)
        return Targets(rewards, torch.zeros_like(rewards))

    def losses(self, log_probs: Tensor, values: Tensor, rollouts: Rollouts, targets: Targets) -> Tensor:
        """Return the error of each pair, for both of its responses."""
        now, before = ((each * rollouts.mask).sum(1).view(-1, 2) for each in (log_probs, rollouts.log_probs))
        return rebel_loss(now, before, targets.advantages[:, 0].reshape(-1, 2), self.eta).repeat_interleave(2)
