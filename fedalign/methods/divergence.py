"""The KL term of a variational selector: its form, its weight over time, and the mixture weights kept on the client."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fedalign.methods.base import Memory
from fedalign.methods.latent_prior import Components
from fedalign.objectives.latent import gumbel_softmax, mixture_kl, mixture_kl_bound, standard_kl


@dataclass(frozen=True)
class Annealing:
    """How the weight of the KL term grows; the ``annealing`` block of a divergence.

    Parameters
    ----------
    schedule : {"constant", "linear", "cyclical"}
        ``linear`` rises once; ``cyclical`` rises along a cosine from the floor to 1 again and again.
    rounds : int
        Length of the rise, or of a cycle.
    floor : float
        Where it starts, as a fraction.
    """

    schedule: Literal["constant", "linear", "cyclical"]
    rounds: Annotated[int, Field(ge=1)]
    floor: Annotated[float, Field(ge=0, le=1)]

    def factor(self, position: float) -> float:
        """Return the factor at ``position``, in rounds since the start (not whole inside a round)."""
        if self.schedule == "constant":
            return 1.0
        if self.schedule == "linear":
            return self.floor + (1 - self.floor) * min(1.0, position / self.rounds)
        rise = 0.5 * (1 - math.cos(math.pi * (position % self.rounds) / self.rounds))
        return self.floor + (1 - self.floor) * rise


@dataclass(frozen=True)
class Divergence:
    """The KL term of a person's evidence lower bound; the ``divergence`` block of a method.

    Parameters
    ----------
    beta : float
        Its weight against the mean log-likelihood of a target judgment.
    form : {"standard", "bound", "mixture"}
        From N(0, I) whatever the prior collects; the paper's bound ``sum_j w_j KL(q || N_j)``; or the divergence from
        the mixture itself, with its logarithm of a sum estimated from samples.
    weights : {"gumbel", "server"}
        Mixture weights learnt on the client through a Gumbel softmax and never sent, or the server's.
    temperature, final_temperature : float
        Of the Gumbel softmax; falls exponentially over the rounds from the one to the other.
    samples : int
        Draws of the latent for ``mixture``.
    annealing : Annealing
    """

    beta: Annotated[float, Field(ge=0)]
    form: Literal["standard", "bound", "mixture"]
    weights: Literal["gumbel", "server"]
    temperature: Annotated[float, Field(gt=0)]
    final_temperature: Annotated[float, Field(gt=0)]
    samples: Annotated[int, Field(ge=1)]
    annealing: Annealing

    def temperature_at(self, progress: float) -> float:
        """Return the temperature when a share ``progress`` of the rounds is over."""
        return self.temperature * math.pow(self.final_temperature / self.temperature, progress)

    def value(
        self,
        mean: Tensor,
        log_variance: Tensor,
        components: Components | None,
        log_weights: Tensor | None,
        generator: torch.Generator,
    ) -> Tensor:
        """Return the divergence of each episode's posterior, shape (E,), in nats.

        Parameters
        ----------
        mean, log_variance : Tensor, shape (E, d)
        components : Components or None
            None stands for the standard normal.
        log_weights : Tensor, shape (J,), or None
            None takes the server's weights.
        generator : torch.Generator
        """
        if components is None or self.form == "standard":
            return standard_kl(mean, log_variance)
        log_weights = components.log_weights if log_weights is None else log_weights
        parts = (components.means, components.log_variances)
        if self.form == "bound":
            return mixture_kl_bound(mean, log_variance, log_weights.exp(), *parts)
        noise = torch.randn(self.samples, *mean.shape, generator=generator)
        return mixture_kl(mean, log_variance, log_weights, *parts, noise)


class LocalWeights:
    """One person's mixture weights: trained on the client, remembered there, never sent.

    Parameters
    ----------
    components : Components
    memory : mutable mapping
    person : str
    """

    def __init__(self, components: Components, memory: Memory, person: str) -> None:
        self._stem = f"prior/{person}"
        self._components = components
        start = components.log_weights.clone()
        if f"{self._stem}/ids" in memory:
            known = dict(zip(memory[f"{self._stem}/ids"].tolist(), memory[f"{self._stem}/deviations"], strict=True))
            for place, number in enumerate(components.ids.tolist()):
                if number in known:
                    start[place] += known[number]
        self.logits = nn.Parameter(start)

    def draw(self, temperature: float, generator: torch.Generator) -> Tensor:
        """Return log weights with fresh Gumbel noise, shape (J,)."""
        return gumbel_softmax(self.logits, torch.rand(len(self.logits), generator=generator), temperature)

    def remember(self, memory: Memory) -> None:
        """Write into memory how far the weights are from the server's, which depend on the number of components."""
        memory[f"{self._stem}/ids"] = self._components.ids.clone()
        memory[f"{self._stem}/deviations"] = self.logits.detach() - self._components.log_weights
