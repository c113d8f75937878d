"""A clipping bound that follows a quantile of the norms, privately (Andrew et al. 2021)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from fedalign.errors import UserError


@dataclass(frozen=True)
class AdaptiveClip:
    """Settings of quantile-based adaptive clipping (Andrew et al. 2021, arXiv 1905.03871, Algorithm 1).

    Round t clips with C_t, and its noise is scaled to C_t as well; `next_bound` then gives C_{t+1} from the noisy
    count of contributions that were within C_t. Noise scaled to C_{t+1} would be too small whenever the bound shrinks.

    Parameters
    ----------
    quantile : float
        The share of contributions that should be within the bound.
    learning_rate : float
        Of the geometric steps; 0.2 in the paper.
    count_noise : float
        Standard deviation of the noise on the count, as a share of the expected cohort; 0.05 in the paper.
    """

    quantile: Annotated[float, Field(gt=0, lt=1)]
    learning_rate: Annotated[float, Field(gt=0)]
    count_noise: Annotated[float, Field(gt=0)]

    def count_std(self, expected_cohort: float) -> float:
        """Return sigma_b, the standard deviation of the noise on the sum of norm bits."""
        return self.count_noise * expected_cohort

    def next_bound(self, bound: float, noisy_bit_sum: float, expected_cohort: float) -> float:
        """Return the bound of the next round: larger if too few contributions were within it, smaller if too many.

        Parameters
        ----------
        bound : float
            C_t.
        noisy_bit_sum : float
            The sum of `norm_bit` over the cohort plus Gaussian noise of `count_std`.
        expected_cohort : float
            The expected number of contributions, never the number that came: that one is not public.

        Returns
        -------
        float
            C_{t+1} = C_t exp(-learning_rate (within - quantile)).
        """
        within = min(max(noisy_bit_sum / expected_cohort + 0.5, 0.0), 1.0)
        return bound * math.exp(-self.learning_rate * (within - self.quantile))


def norm_bit(norm: float, bound: float) -> float:
    """Return 1/2 for a norm within the bound and -1/2 for one beyond it; centred, so that its sensitivity is 1/2."""
    return 0.5 if norm <= bound else -0.5


def update_noise_multiplier(noise_multiplier: float, count_std: float) -> float:
    """Return the noise multiplier of the updates that leaves the two releases of a round at ``noise_multiplier``.

    The updates with z_delta and the norm bits with sigma_b (sensitivity 1/2) are one Gaussian release of multiplier z
    if z**-2 = z_delta**-2 + (2 sigma_b)**-2 (Andrew et al. 2021, Theorem 1), so the ledger is charged with z once.

    Parameters
    ----------
    noise_multiplier : float
        z, of the round as a whole; 0 is no noise.
    count_std : float
        sigma_b, standard deviation of the noise on the sum of norm bits.

    Returns
    -------
    float
        z_delta, larger than z.

    Raises
    ------
    UserError
        If the noise on the count spends all of the round's guarantee by itself.
    """
    if noise_multiplier == 0:
        return 0.0
    if 2 * count_std <= noise_multiplier:
        raise UserError(
            f"privacy.clip.adaptive.count_noise gives the norm bits noise of standard deviation {count_std:g}, too "
            f"little for noise multiplier {noise_multiplier:g}; raise it until that is above {noise_multiplier / 2:g}"
        )
    return 1 / math.sqrt(noise_multiplier**-2 - (2 * count_std) ** -2)
