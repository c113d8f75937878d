"""One reward out of those that several groups give the same response: mean, min, max, and weights that follow history.

After Srewa et al., arXiv 2512.08786 and 2604.04261. A group that has fared badly so far counts more. In the papers the
weights sum to 1 and stand inside a log-mean-exp, whose value is then about the mean *divided by the number of groups*:
where the fairness index crosses its threshold and the plain mean takes over, rewards jump by that factor. Here the
weights stand before the exponential by default, so that nothing jumps.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

Scaling = Literal["weighted", "rescaled", "published"]
"""Where the weights stand in a log-mean-exp, see :func:`weighted_log_mean_exp`."""


class RewardAggregation(ABC):
    """How the rewards of several groups become one; subclasses are frozen dataclasses of their settings."""

    @abstractmethod
    def combine(self, rewards: Tensor, history: Tensor) -> Tensor:
        """Return one reward a response.

        Parameters
        ----------
        rewards : float tensor, shape (G, B)
            Of each group for each response.
        history : float tensor, shape (G,)
            How well each group has fared in earlier rounds, see :func:`updated_history`; NaN where nothing is known.

        Returns
        -------
        float tensor, shape (B,)
        """

    def remember(self, history: Tensor, rewards: Tensor) -> Tensor:
        """Return the history after a round, shape (G,); by default the round's mean rewards alone."""
        return updated_history(history, rewards, 0.0)


@dataclass(frozen=True)
class MeanRewards(RewardAggregation):
    """Every group counts the same, whatever happened before."""

    def combine(self, rewards: Tensor, history: Tensor) -> Tensor:
        """Return the mean over groups."""
        return rewards.mean(0)


@dataclass(frozen=True)
class MinRewards(RewardAggregation):
    """The group that likes a response least decides on it."""

    def combine(self, rewards: Tensor, history: Tensor) -> Tensor:
        """Return the lowest of the groups' rewards."""
        return rewards.amin(0)


@dataclass(frozen=True)
class MaxRewards(RewardAggregation):
    """The group that likes a response most decides on it."""

    def combine(self, rewards: Tensor, history: Tensor) -> Tensor:
        """Return the highest of the groups' rewards."""
        return rewards.amax(0)


@dataclass(frozen=True)
class AdaptiveAlpha(RewardAggregation):
    """Groups that have fared badly count more, while rewards are unfair; else all count the same.

    Parameters
    ----------
    temperature : float
        Of the softmax that turns histories into weights: the lower, the more the worst group counts.
    memory : float
        Of the moving average of a group's mean rewards that its history is (lambda in the paper).
    threshold : float
        Fairness index from which on the plain mean is taken; above 1 it never is.
    scaling : {"weighted", "rescaled", "published"}
        See :func:`weighted_log_mean_exp`.
    """

    temperature: Annotated[float, Field(gt=0)]
    memory: Annotated[float, Field(ge=0, lt=1)]
    threshold: Annotated[float, Field(ge=0)]
    scaling: Scaling

    def combine(self, rewards: Tensor, history: Tensor) -> Tensor:
        """Return the mean over groups where rewards are fair, else their weighted log-mean-exp."""
        if fairness_index(rewards) >= self.threshold:
            return rewards.mean(0)
        return weighted_log_mean_exp(rewards, adaptive_weights(history, self.temperature), self.scaling)

    def remember(self, history: Tensor, rewards: Tensor) -> Tensor:
        """Return the moving average of the groups' mean rewards."""
        return updated_history(history, rewards, self.memory)


def fairness_index(rewards: Tensor) -> float:
    """Return the mean over responses of ``1 / (1 + CoV^2)`` over groups (arXiv 2512.08786; Jain's index).

    CoV is the population standard deviation over the mean. 1 means that every response is worth the same to all groups,
    which includes being worth nothing.

    Parameters
    ----------
    rewards : float tensor, shape (G, B)
    """
    squares = rewards.double().square().mean(0)
    index = rewards.double().mean(0).square() / squares
    return float(torch.where(squares > 0, index, torch.ones_like(index)).mean())


def adaptive_weights(history: Tensor, temperature: float) -> Tensor:
    """Return ``softmax((1 - history) / temperature)`` over groups; the weights sum to 1.

    Parameters
    ----------
    history : float tensor, shape (G,)
        A group without any (NaN) is taken to have fared as the others did on average.
    temperature : float

    Returns
    -------
    float tensor, shape (G,)
    """
    known = ~history.isnan()
    usual = history[known].mean() if bool(known.any()) else history.new_zeros(())
    return ((1 - torch.where(known, history, usual)) / temperature).softmax(0)


def weighted_log_mean_exp(rewards: Tensor, weights: Tensor, scaling: Scaling) -> Tensor:
    """Return the log-mean-exp over G groups' rewards r under weights a that sum to 1.

    ========= ================================= =====================================================================
    scaling   value                             with rewards that are equal
    ========= ================================= =====================================================================
    weighted  ``log sum_g a_g exp(r_g)``        that reward, whatever the weights: no jump where rewards become fair
    rescaled  ``log mean_g exp(G a_g r_g)``     that reward to first order, and exactly if the weights are equal
    published ``log mean_g exp(a_g r_g)``       about that reward divided by G (the papers' form as it is printed)
    ========= ================================= =====================================================================

    To first order the first two are ``sum_g a_g r_g``, the last is a G-th of it. The first lies between the lowest and
    the highest reward and exceeds the weighted mean by at most an eighth of the squared range (Hoeffding).

    Parameters
    ----------
    rewards : float tensor, shape (G, B)
    weights : float tensor, shape (G,)
    scaling : {"weighted", "rescaled", "published"}

    Returns
    -------
    float tensor, shape (B,)
    """
    groups = len(rewards)
    if scaling == "weighted":
        return (rewards + weights.log()[:, None]).logsumexp(0)
    factor = groups if scaling == "rescaled" else 1
    return (factor * weights[:, None] * rewards).logsumexp(0) - math.log(groups)


def updated_history(history: Tensor, rewards: Tensor, memory: float) -> Tensor:
    """Return how well each group has fared, this round included.

    Parameters
    ----------
    history : float tensor, shape (G,)
        Before this round; NaN for a group that had none, whose history begins with this round's mean.
    rewards : float tensor, shape (G, B)
    memory : float
        Share of the history that stays.

    Returns
    -------
    float tensor, shape (G,)
    """
    now = rewards.mean(1)
    return torch.where(history.isnan(), now, memory * history + (1 - memory) * now)
