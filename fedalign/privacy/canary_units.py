"""Canary units: made-up examples or people of a client, whose gradients are directions that an auditor knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from fedalign.privacy.canaries import Canaries
from fedalign.privacy.dp_sgd import UnitLosses
from fedalign.privacy.local import LocalPrivacy
from fedalign.rng import Streams


class CanaryUnits(UnitLosses):
    """A client's units, and the canaries behind them.

    A canary's loss is linear in the trained parameters, so that a step along its gradient moves them along its
    direction, wherever they are.

    Parameters
    ----------
    own : UnitLosses
        The client's units.
    canaries : Canaries
    network : nn.Module
        Directions run over its trained parameters, in their order.
    length : float
        Norm of a canary's gradient.
    phase : str
    stage : str or None
        Of the phase; canaries of other stages are silent.
    """

    def __init__(
        self,
        own: UnitLosses,
        canaries: Canaries,
        network: nn.Module,
        length: float,
        phase: str,
        stage: str | None = None,
    ) -> None:
        self._own, self._canaries, self._length, self._phase = own, canaries, length, phase
        self._signs = np.where(canaries.within(stage), canaries.signs, 0.0)
        self._parameters = [p for p in network.parameters() if p.requires_grad]

    @property
    def units(self) -> int:
        """The client's and all canaries, held-out ones too."""
        return self._own.units + self._canaries.count

    def losses(self, chosen: Tensor, step: int) -> Tensor:
        """Return the loss of each chosen unit."""
        theirs = chosen < self._own.units
        parts = [self._pull(number) for number in (chosen[~theirs] - self._own.units).tolist()]
        own = [self._own.losses(chosen[theirs], step)] if bool(theirs.any()) else []
        return torch.cat([*own, *(part[None] for part in parts)])

    def _pull(self, number: int) -> Tensor:
        flat = torch.cat([p.flatten() for p in self._parameters])
        sign = float(self._signs[number])
        if not sign:
            return 0.0 * flat.sum()
        direction = torch.from_numpy(self._canaries.direction(number, self._phase, len(flat)))
        return -sign * self._length * torch.dot(flat, direction.to(flat))


@dataclass(frozen=True)
class CanaryLocalPrivacy(LocalPrivacy):
    """DP-SGD on units that canaries have joined; needs ``grad_sample="loop"``, which serves any loss.

    Parameters
    ----------
    canaries : Canaries
    stages : mapping from phase name to str or None
        What stage a phase is of; None, or not there, for one that is of all.
    """

    canaries: Canaries
    stages: Mapping[str, str | None] = field(default_factory=dict, kw_only=True)

    def joined(self, units: UnitLosses, network: nn.Module, streams: Streams) -> UnitLosses:
        """Return the units with the canaries behind them."""
        phase = streams.phase
        length = self.canaries.norm * self.settings.in_phase(phase).clip
        return CanaryUnits(units, self.canaries, network, length, phase, self.stages.get(phase))
