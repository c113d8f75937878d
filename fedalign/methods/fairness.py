"""Which mixture of type policies is fair to everybody: min-max regret, the least reward, or the types' shares."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedalign.errors import UserError
from fedalign.methods.mmra import KEY, MixturePhase
from fedalign.methods.text_policies import Writing
from fedalign.objectives.regret import maxmin_weights, minmax_weights, regret_matrix

if TYPE_CHECKING:
    from fedalign.methods.em import EMPhase
    from fedalign.methods.emdpo import EMDPO


class Mixing(ABC):
    """Whether and how types are mixed; the ``fair`` block of the method."""

    @abstractmethod
    def phases(self, method: EMDPO, em: EMPhase) -> list[MixturePhase]:
        """Return the phase that mixes the types, to follow EM; none where they are not mixed.

        Raises
        ------
        UserError
            If the settings do not fit the method's types.
        """


@dataclass(frozen=True)
class NoMixture(Mixing):
    """Types are not mixed: they serve their own annotators."""

    def phases(self, method: EMDPO, em: EMPhase) -> list[MixturePhase]:
        """Return no phase."""
        return []


@dataclass(frozen=True)
class Fairness(Mixing):
    """Settings of the mixture's phase.

    Parameters
    ----------
    basis : {"answers", "judgments"}
        What the weights rest on. ``answers``: implicit rewards of what the types' policies write, which no human has
        seen. ``judgments``: how much likelier each type's policy than the reference makes the judgments of those who
        are of a type. Both are worked out and reported where clients have a part in it.
    prompts : str or None
        A text file of public prompts, one a line, with which the server works alone; None takes the clients' own
        training prompts, of which nothing travels but sums over them.
    client_prompts : int
        Prompts of a client, at most. Those of a public file are all used.
    writing : Writing
        How policies write; read where types are language models.
    """

    basis: Literal["answers", "judgments"]
    prompts: str | None
    client_prompts: Annotated[int, Field(ge=1)]
    writing: Writing

    def __post_init__(self) -> None:
        """Refuse judgments where nobody who judged is asked.

        Raises
        ------
        UserError
            Naming both settings.
        """
        if self.prompts is not None and self.basis == "judgments":
            raise UserError(
                f"{KEY}.basis=judgments: with {KEY}.prompts={self.prompts} no client is asked; set {KEY}.basis=answers "
                f"or {KEY}.prompts=null"
            )

    def phases(self, method: EMDPO, em: EMPhase) -> list[MixturePhase]:
        """Return the phase that mixes the types."""
        return [MixturePhase(method, em, self)]

    def type_weights(self, types: int) -> Tensor:
        """Return how much each of K types' regret counts, shape (K,); by default all the same.

        Raises
        ------
        UserError
            If the settings weigh another number of types.
        """
        return torch.ones(types)

    def regrets(self, rewards: Tensor) -> Tensor:
        """Return what each type (row) loses under each type's policy, float64 of shape (K, K)."""
        return regret_matrix(rewards, self.type_weights(len(rewards)), normalise=False)

    @abstractmethod
    def mixture(self, rewards: Tensor, shares: Tensor) -> Tensor:
        """Return the chances of the types' policies, float64 of shape (K,).

        Parameters
        ----------
        rewards : Tensor, shape (K, K)
            Row i: type i's mean implicit reward of each type's policy.
        shares : Tensor, shape (K,)
            Of annotators.
        """


@dataclass(frozen=True)
class MinMaxRegret(Fairness):
    """MMRA: the worst type's regret is least (Chidambaram et al., arXiv 2405.15065).

    Parameters
    ----------
    weights : tuple of float or None
        How much each type's regret counts; None counts all the same.
    normalise : bool
        Whether a type's regret is a share of what its own policy gives it. Rewards are sums over tokens, so that types
        with long answers, or far from the reference, would else own the maximum.
    """

    weights: tuple[Annotated[float, Field(gt=0)], ...] | None
    normalise: bool

    def type_weights(self, types: int) -> Tensor:
        """Return the weights that are set, or ones."""
        if self.weights is None:
            return torch.ones(types)
        if len(self.weights) != types:
            raise UserError(
                f"{KEY}.weights={list(self.weights)} has {len(self.weights)} numbers, and there are {types} types; "
                "give one each, or null"
            )
        return torch.tensor(self.weights)

    def regrets(self, rewards: Tensor) -> Tensor:
        """Return weighted regrets, as shares of a type's own reward where these are asked for."""
        return regret_matrix(rewards, self.type_weights(len(rewards)), self.normalise)

    def mixture(self, rewards: Tensor, shares: Tensor) -> Tensor:
        """Return the solution of the game."""
        return minmax_weights(self.regrets(rewards))[0]


@dataclass(frozen=True)
class MaxMinReward(Fairness):
    """The worst type's reward is highest (after MaxMin-RLHF, Chakraborty et al. 2024), whatever it could have had."""

    def mixture(self, rewards: Tensor, shares: Tensor) -> Tensor:
        """Return the solution of the game."""
        return maxmin_weights(rewards)[0]


@dataclass(frozen=True)
class TypeShares(Fairness):
    """Types count as many annotators as they have: what a population-wide average comes to."""

    def mixture(self, rewards: Tensor, shares: Tensor) -> Tensor:
        """Return the shares."""
        return shares.double() / shares.double().sum()
