"""What becomes of metrics under a guarantee: shown as they are, withheld, or released as sums with noise."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field


class MetricRelease(ABC):  # noqa: B024 - says what it is for only
    """What the server learns of the clients' metrics; the ``privacy/metrics`` config group."""


@dataclass(frozen=True)
class OpenMetrics(MetricRelease):
    """Metrics are sent as they are, past the guarantee: for simulations, whose data are in one hand anyway."""


@dataclass(frozen=True)
class WithheldMetrics(MetricRelease):
    """No metric leaves a client."""


@dataclass(frozen=True)
class SummedMetrics(MetricRelease):
    """A few metrics are added up over clients, one value a client and nothing by group.

    Parameters
    ----------
    names : tuple of str
        Which metrics, as in ``unseen/accuracy``; empty means the method's headline and its selection metric, as far as
        an evaluation tells of them.
    noise_multiplier : float
        Standard deviation of the noise on these sums over what one client can change them by. It has a budget of its
        own, which the ledger adds to that of training; 0 adds none, and goes with no differential privacy.
    """

    names: tuple[str, ...]
    noise_multiplier: Annotated[float, Field(ge=0)]
