"""The noise of training on the clients, found from the configuration alone, so that nodes and server find the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedalign.federation.account import Account
from fedalign.federation.exposure import Exposure, most_rounds_at_worst, part_of
from fedalign.federation.sampling import Sampler
from fedalign.methods.base import Phase
from fedalign.privacy.protection import Protection
from fedalign.privacy.scheme import Sampling, Scheme

_ANYBODY = Sampling(Scheme.EVERYONE, 1, 1.0)


def local_noise_multipliers(
    privacy: Protection, sampler: Sampler, phases: Sequence[Phase[Any]], disjoint: bool
) -> dict[str, float]:
    """Return the noise multiplier of DP-SGD on clients in each phase.

    Parameters
    ----------
    privacy : Protection
        One with ``local``.
    sampler : Sampler
    phases : sequence of Phase
        Those that train.
    disjoint : bool
        Whether within a client no unit's data are read by two stages.

    Raises
    ------
    UserError
        If delta is not set, or no noise keeps within the budget.
    """
    exposures = [
        Exposure(
            p.name, p.rounds, _ANYBODY, 0, p.local_steps, most_rounds_at_worst(p, sampler),
            part_of(p, (), privacy, disjoint),
        )
        for p in phases
    ]  # fmt: skip
    return Account(privacy, exposures, 0, 0, None).noise_multipliers
