"""The gradient of a DP-SGD step: a Poisson batch of units, clipped, summed, hidden in noise, over the expected size.

Opacus finds the gradients of units; clipping and noise are done here, because its ``DPOptimizer`` draws noise in the
parameters' own precision from a generator that is not made for secrets (its secure mode needs a package that is no
longer maintained), and lets a gradient of NaN through.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fedalign.privacy.local import LocalPrivacy
from fedalign.privacy.noise import add_gaussian
from fedalign.privacy.unit_gradients import UnitGradients, unit_gradients
from fedalign.rng import Streams


class UnitLosses(Protocol):
    """What a method gives DP-SGD: the loss of each of a client's units."""

    @property
    def units(self) -> int:
        """Number of the client's units."""

    def losses(self, chosen: Tensor, step: int) -> Tensor:
        """Return the loss of each chosen unit, shape (U,), at the network's present parameters.

        A unit's loss depends on its own data alone, and on draws that are its own: it is the same, whichever other
        units are asked for with it. Dropout, which draws for every row anew, and orders that go by a unit's number are
        the same in distribution only, so they must come from :meth:`LocalPrivacy.draws`, which nobody else knows.

        Parameters
        ----------
        chosen : int64 Tensor, shape (U,)
            Numbers of units, at least one, rising.
        step : int
            Of the round, from 0.
        """


class PrivateGradients:
    """Writes the gradient of one DP-SGD step after the other into a network's trained parameters.

    Parameters
    ----------
    gradients : UnitGradients
    units : UnitLosses
    privacy : LocalPrivacy
    streams : Streams
        At the client's place in the round.
    """

    def __init__(self, gradients: UnitGradients, units: UnitLosses, privacy: LocalPrivacy, streams: Streams) -> None:
        self._gradients, self._units = gradients, units
        self._settings = privacy.settings.in_phase(streams.phase)
        self._noise_multiplier = privacy.noise_in(streams.phase)
        self._batches = privacy.randomness.generator(streams, "dp_sgd/batches")
        self._noise = privacy.randomness.generator(streams, "dp_sgd/noise")

    def write(self, step: int) -> None:
        """Draw a batch and put the noisy mean gradient into every parameter's ``grad``.

        The mean is over the expected number of units, whatever the batch has. An empty batch gives noise alone.
        """
        settings = self._settings
        chosen = poisson_batch(self._units.units, settings.rate, self._batches)
        sums = self._gradients.clipped_sum(lambda some: self._units.losses(some, step), chosen)
        flat = torch.cat([s.flatten().cpu() for s in sums]).numpy()
        noisy = add_gaussian(flat, self._noise_multiplier * settings.clip, self._noise)
        mean = torch.from_numpy(noisy / (settings.rate * self._units.units))
        start = 0
        for parameter in self._gradients.parameters:
            stop = start + parameter.numel()
            parameter.grad = mean[start:stop].view_as(parameter).to(parameter)
            start = stop


@contextmanager
def private_gradients(
    network: nn.Module, units: UnitLosses, privacy: LocalPrivacy, streams: Streams
) -> Iterator[PrivateGradients]:
    """Give what writes the gradients of a client's round; the network is left without hooks."""
    gradients = unit_gradients(network, privacy.settings.in_phase(streams.phase))
    try:
        yield PrivateGradients(gradients, privacy.joined(units, network, streams), privacy, streams)
    finally:
        gradients.close()


def poisson_batch(units: int, rate: float, generator: np.random.Generator) -> Tensor:
    """Return the numbers of the units that take part, int64, rising: each with probability ``rate`` on its own."""
    return torch.from_numpy(np.flatnonzero(generator.random(units) < rate))
