"""The guarantee of a run: budget, unit, clipping, mechanism, secure sum and metrics, checked to go together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from fedalign.errors import UserError
from fedalign.privacy.base import Privacy
from fedalign.privacy.client_level import ClientLevel
from fedalign.privacy.local import DPSGD
from fedalign.privacy.mechanism import Mechanism
from fedalign.privacy.metric_release import MetricRelease, OpenMetrics, SummedMetrics
from fedalign.privacy.noise import NoiseSource
from fedalign.privacy.secure_sum import SecureSum

Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class Protection(Privacy):
    """Settings of the ``privacy`` config group.

    Parameters
    ----------
    epsilon : float or None
        Budget of the whole run. With ``noise_multiplier`` null, the noise is chosen so that the planned rounds spend
        it; else the run stops before a round that would exceed it. None sets no limit.
    delta : float or None
        None takes the number of units to the power of -1.1. With that probability anything may be told, so it is
        below one over the number of units, and 0.1 at most, however few there are.
    noise_multiplier : float or None
        Standard deviation of the noise over the clipping bound.
    clip : ClientLevel or None
        Bounds a client's contribution.
    mechanism : Mechanism or None
        Hides a client in the sum.
    local : DPSGD or None
        Hides an example or a user of a client in what the client sends.
    secure : SecureSum or None
        Hides a client's contribution from the server.
    metrics : MetricRelease
    randomness : NoiseSource
        Of the noise, and of cohorts and batches whose secrecy amplifies it.

    Raises
    ------
    UserError
        If the parts do not go together.
    """

    epsilon: Positive | None
    delta: Annotated[float, Field(gt=0, le=0.1)] | None
    noise_multiplier: Annotated[float, Field(ge=0)] | None
    clip: ClientLevel | None
    mechanism: Mechanism | None
    local: DPSGD | None
    secure: SecureSum | None
    metrics: MetricRelease
    randomness: NoiseSource

    def __post_init__(self) -> None:
        """Refuse parts that promise nothing together, or what they cannot keep."""
        if (self.clip is None) != (self.mechanism is None):
            raise UserError("privacy.clip and privacy.mechanism belong together: noise hides what clipping bounds")
        if self.mechanism is not None and self.local is not None:
            raise UserError(
                "privacy.local and privacy.mechanism protect different units; a run states one guarantee: leave one out"
            )
        if not self.private and self.secure is None:
            raise UserError(
                "privacy has neither a mechanism nor local noise nor a secure sum, so it promises nothing; set "
                "privacy=none"
            )
        if self.private and self.epsilon is None and self.noise_multiplier is None:
            raise UserError("privacy.epsilon and privacy.noise_multiplier are both null; set one")
        if not self.private and (self.epsilon, self.noise_multiplier) != (None, None):
            raise UserError(
                "privacy.epsilon needs a mechanism that spends it; choose privacy=central, or set it to null"
            )
        self._check_mechanism()
        self._check_metrics()

    @property
    def private(self) -> bool:
        """Whether the run is differentially private."""
        return self.mechanism is not None or self.local is not None

    def _check_mechanism(self) -> None:
        distributed = self.mechanism is not None and self.mechanism.distributed
        if distributed and self.secure is None:
            raise UserError(
                "privacy.mechanism=skellam hides a client in a sum only if nobody sees its own part; "
                "add privacy/secure=secagg"
            )
        if self.clip is not None and self.clip.adaptive is not None and not self._adapts():
            raise UserError(
                "privacy.clip.adaptive is accounted for with privacy/mechanism=gaussian only; set it to null"
            )

    def _adapts(self) -> bool:
        from fedalign.privacy.mechanism import Gaussian

        return isinstance(self.mechanism, Gaussian)

    def _check_metrics(self) -> None:
        if self.secure is not None and isinstance(self.metrics, OpenMetrics):
            raise UserError(
                "privacy/metrics=open would send each client's metrics past the secure sum; set summed or withheld"
            )
        if isinstance(self.metrics, SummedMetrics) and self.local is not None:
            raise UserError(
                "privacy/metrics=summed would tell the server what privacy.local hides from it; set "
                "privacy/metrics=withheld, or open in a simulation"
            )
        if isinstance(self.metrics, SummedMetrics) and self.private and not self.metrics.noise_multiplier:
            raise UserError(
                "privacy.metrics.noise_multiplier=0 releases exact sums past the guarantee; raise it, or set "
                "privacy/metrics=withheld"
            )
