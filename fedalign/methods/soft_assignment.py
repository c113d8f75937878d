"""Heads that a person takes part in by degrees: FedEM's mixture of likelihoods and PAL's blend of rewards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedalign.contribution import State
from fedalign.data.pairs import Judgments
from fedalign.methods.assignment import Assignment, Decision, Heads, chosen_mass
from fedalign.methods.base import Memory
from fedalign.methods.membership import BlendedHeads, Membership, WeightedHeads
from fedalign.objectives.mixture import blend, blend_weights, mixture_logits, mixture_weights, responsibilities

Shares = Literal["membership", "uniform"]
"""A client's weight in the mean of a head: by its part in that head, or the same for all heads.

The papers' plain mean is ``uniform``. It rests on gradients that shrink with the part that a client has in a head; Adam
takes that away, since its steps do not depend on the gradient's scale. ``membership`` puts it back.
"""


@dataclass(frozen=True)
class Mixture(Assignment):
    """FedEM: a person's judgments come from a personal mixture of shared heads (Marfoq et al. 2021).

    At the start of a round the client computes responsibilities under the broadcast heads, without gradient, and its
    mixture weights from them; both stay fixed while it trains. The weights are kept on the client and never sent.

    Parameters
    ----------
    train_iterations : int
        Iterations of EM on the mixture weights at the start of a round, from those of the person's last round; the
        paper has 1.
    context_iterations : int
        Iterations of EM at evaluation, from equal weights.
    shares : {"membership", "uniform"}
    """

    train_iterations: Annotated[int, Field(ge=1)]
    context_iterations: Annotated[int, Field(ge=1)]
    shares: Shares

    def membership(
        self, heads: Heads, state: State, judgments: Judgments, round_number: int, memory: Memory
    ) -> Membership:
        """Return the responsibilities as weights."""
        losses = heads.losses(judgments, judgments.train)
        key = f"mixture/{judgments.person}"
        # The weights that responsibilities are computed with are those before the last update, as in the paper.
        before = mixture_weights(losses, memory.get(key, _even(heads)), self.train_iterations - 1)
        found = responsibilities(losses, before)
        memory[key] = found.mean(1).log()
        weights = torch.zeros(heads.count, len(judgments.prompts))
        weights[:, judgments.train] = found
        return WeightedHeads(weights, torch.ones(heads.count) if self.shares == "uniform" else found.mean(1))

    def decision(self, heads: Heads, judgments: Judgments, context: Tensor) -> Decision:
        """Return the log odds of the mixture, with weights that EM finds in the context."""
        weights = mixture_weights(heads.losses(judgments, context), _even(heads), self.context_iterations)
        return lambda logits: mixture_logits(logits, weights)


@dataclass(frozen=True)
class Blend(Assignment):
    """PAL with shared heads as prototypes: a person's reward is a convex combination of them (Chen et al. 2025).

    The logits of the weights are trained along with the heads, kept on the client and never sent. At evaluation the
    weights are fitted to the context under frozen heads.

    Parameters
    ----------
    rate : float
        The logits are trained in units of this size: with Adam their steps are so many times longer than those of a
        head's parameters (with SGD, as many times squared). Few rounds reach a person.
    context_iterations : int
        Steps of the fit at evaluation (:func:`fedalign.objectives.mixture.blend_weights`).
    shares : {"membership", "uniform"}
    """

    rate: Annotated[float, Field(gt=0)]
    context_iterations: Annotated[int, Field(ge=1)]
    shares: Shares

    def membership(
        self, heads: Heads, state: State, judgments: Judgments, round_number: int, memory: Memory
    ) -> Membership:
        """Return the blend with the remembered weights, or with equal ones."""
        key = f"blend/{judgments.person}"
        return BlendedHeads(memory.get(key, torch.zeros(heads.count)), self.rate, self.shares == "uniform", key)

    def decision(self, heads: Heads, judgments: Judgments, context: Tensor) -> Decision:
        """Return the blend with weights fitted to the context."""
        mass = chosen_mass(judgments, context)
        weights = blend_weights(heads.logits(judgments, context), mass, self.context_iterations)
        return lambda logits: blend(logits, weights)


def _even(heads: Heads) -> Tensor:
    """Return equal log weights, shape (K,)."""
    return torch.full((heads.count,), 1.0 / heads.count).log()
