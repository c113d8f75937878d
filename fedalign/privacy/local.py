"""Settings of local differential privacy: what DP-SGD on a client protects, and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from fedalign.errors import UserError
from fedalign.privacy.noise import NoiseSource

if TYPE_CHECKING:
    from torch import nn

    from fedalign.privacy.dp_sgd import UnitLosses
    from fedalign.rng import Streams

KEY = "privacy.local"
"""Where the settings stand in the configuration, for error messages."""

Unit = Literal["example", "user"]
"""What is added or removed between neighbouring data sets of one client: a judgment, or a person with all of theirs."""

GradSample = Literal["hooks", "functorch", "ghost", "loop"]


@dataclass(frozen=True)
class DPSGD:
    """DP-SGD on every client (Abadi et al. 2016, algorithm 1); the ``privacy.local`` block.

    What a client sends is then differentially private towards everyone, the server included. The number of its units
    is taken as public.

    Parameters
    ----------
    unit : {"example", "user"}
    clip : float
        L2 norm C that the gradient of a unit is shrunk to, all trained tensors together.
    rate : float
        Probability q that a unit takes part in a step, independently of all others and of earlier steps.
    rates, clips : mapping from phase name to float
        Rates and bounds of phases that need others.
    grad_sample : {"hooks", "functorch", "ghost", "loop"}
        How the gradients of units are found. ``hooks`` and ``functorch`` are Opacus' two ways in one backward pass
        over the batch; ``ghost`` finds their norms alone and takes a second pass, for networks whose gradients do not
        fit in memory once a unit; ``loop`` is a pass for each unit, and serves every network.
    """

    unit: Unit
    clip: Annotated[float, Field(gt=0)]
    rate: Annotated[float, Field(gt=0, le=1)]
    grad_sample: GradSample
    rates: Mapping[str, Annotated[float, Field(gt=0, le=1)]] = field(default_factory=dict, kw_only=True)
    clips: Mapping[str, Annotated[float, Field(gt=0)]] = field(default_factory=dict, kw_only=True)

    def in_phase(self, phase: str) -> DPSGD:
        """Return the settings with the bound and the rate of a phase."""
        return replace(self, clip=self.clips.get(phase, self.clip), rate=self.rates.get(phase, self.rate))

    def check_phases(self, known: Sequence[str]) -> None:
        """Refuse rates and bounds of phases that there are not.

        Raises
        ------
        UserError
            Naming the key.
        """
        for key, named in (("rates", self.rates), ("clips", self.clips)):
            for name in named:
                if name not in known:
                    raise UserError(f"{KEY}.{key}.{name}: no such phase; there are {', '.join(known)}")


@dataclass(frozen=True)
class LocalPrivacy:
    """DP-SGD as a phase is told of it: the settings, and what the run makes of its budget.

    Parameters
    ----------
    settings : DPSGD
    noise_multiplier : float
        Standard deviation of a step's noise over ``settings.clip``, in phases that ``noise_multipliers`` does not
        name; 0 adds none.
    randomness : NoiseSource
        Of the noise and of the batches: whoever knows a batch gets no amplification from its having been drawn.
    noise_multipliers : mapping from phase name to float
        Where phases have budgets of their own.
    """

    settings: DPSGD
    noise_multiplier: float
    randomness: NoiseSource
    noise_multipliers: Mapping[str, float] = field(default_factory=dict, kw_only=True)

    def noise_in(self, phase: str) -> float:
        """Return the noise multiplier of a phase's steps."""
        return self.noise_multipliers.get(phase, self.noise_multiplier)

    def draws(self, streams: Streams) -> Streams:
        """Return the streams of what a client's units draw in a round: dropout, orders, episodes.

        They are as secret as the noise: whoever knew them could tell by whose places they went to.
        """
        generator = self.randomness.generator(streams, "dp_sgd/draws")
        return replace(streams, seed=int(generator.integers(2**63)))

    def joined(self, units: UnitLosses, network: nn.Module, streams: Streams) -> UnitLosses:
        """Return what is trained on in the round of ``streams``: the client's units; an audit has others join them."""
        return units
