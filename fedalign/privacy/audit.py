"""A privacy audit: lower bounds on epsilon from canaries' scores, beside the epsilon that is claimed."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from fedalign.errors import UserError
from fedalign.privacy.audit_bound import Bound, CanaryScores, LowerBound
from fedalign.privacy.canary_audit import CanaryBound, Normal, canary_estimate, fit_normal
from fedalign.privacy.one_run_audit import OneRunBound
from fedalign.privacy.roc_audit import GdpBound, RocBound

Verdict = Literal["consistent", "violated", "doubtful", "no claim"]


@dataclass(frozen=True)
class AuditSettings:
    """Which bounds an audit measures, and which one of them decides.

    The error probability 1 - ``confidence`` is divided before anything is seen, so that all bounds hold at once: half
    of it to the bound that decides and the rest evenly to the others, or all of it to a bound that is alone.

    Parameters
    ----------
    confidence : float
        Of all bounds together.
    main : {"one_run", "roc", "gdp", "canary"}
        The bound that is reported as the result. Scores of one run depend on each other through it, so there only
        ``one_run`` rests on nothing but the coins.
    one_run, roc, gdp, canary : LowerBound or None
        None leaves it out.
    """

    confidence: Annotated[float, Field(gt=0.5, lt=1)]
    main: Literal["one_run", "roc", "gdp", "canary"]
    one_run: OneRunBound | None
    roc: RocBound | None
    gdp: GdpBound | None
    canary: CanaryBound | None

    def __post_init__(self) -> None:
        if getattr(self, self.main) is None:
            raise UserError(
                f"audit.main={self.main} but audit.{self.main} is null; give its settings or choose another"
            )

    def allotted(self) -> list[tuple[LowerBound, float]]:
        """Return each bound with its part of the error probability, the one that decides first."""
        first: LowerBound = getattr(self, self.main)
        others = [b for b in (self.one_run, self.roc, self.gdp, self.canary) if b is not None and b is not first]
        alpha = 1 - self.confidence
        if not others:
            return [(first, alpha)]
        return [(first, alpha / 2), *((bound, alpha / (2 * len(others))) for bound in others)]


@dataclass(frozen=True)
class AuditResult:
    """What an audit found.

    Parameters
    ----------
    claimed : float or None
        Epsilon of the ledger at ``delta``; None if no guarantee is claimed.
    delta : float
    confidence : float
        With which all bounds hold at once, each under what it assumes.
    canaries_included, canaries_held_out : int
    bounds : tuple of Bound
        The first one decides.
    estimate : float
        Epsilon between the two fitted normals: a point estimate without a confidence statement, possibly infinite.
    included, held_out : Normal
        The fits.
    """

    claimed: float | None
    delta: float
    confidence: float
    canaries_included: int
    canaries_held_out: int
    bounds: tuple[Bound, ...]
    estimate: float
    included: Normal
    held_out: Normal

    @property
    def main(self) -> Bound:
        """The bound that was chosen in advance to decide."""
        return self.bounds[0]

    @property
    def verdict(self) -> Verdict:
        """Whether the claim can be true.

        "violated" if the deciding bound exceeds it, "doubtful" if only another one does, which rests on more
        assumptions or on less of the error probability, "consistent" if none does. The last is no proof of the claim.
        """
        if self.claimed is None:
            return "no claim"
        if self.main.epsilon > self.claimed:
            return "violated"
        return "doubtful" if any(bound.epsilon > self.claimed for bound in self.bounds) else "consistent"

    @property
    def can_fail(self) -> bool:
        """Whether the deciding bound could have exceeded the claim at all; more canaries raise its ceiling."""
        return self.claimed is not None and self.main.ceiling > self.claimed

    def to_json(self) -> dict[str, Any]:
        """Return the result for a JSON file; what is infinite is written as null."""
        return {
            "verdict": self.verdict,
            "can_fail": self.can_fail,
            "epsilon_lower_bound": _finite(self.main.epsilon),
            "epsilon_claimed": _finite(self.claimed),
            "epsilon_estimate": _finite(self.estimate),
            "delta": self.delta,
            "confidence": self.confidence,
            "canaries": {"included": self.canaries_included, "held_out": self.canaries_held_out},
            "bounds": [_strict(bound) for bound in self.bounds],
            "fit": {"included": asdict(self.included), "held_out": asdict(self.held_out)},
        }


def audit(
    scores: CanaryScores,
    settings: AuditSettings,
    *,
    delta: float,
    claimed: float | None,
    generator: np.random.Generator,
) -> AuditResult:
    """Measure every bound of the settings on canaries' scores.

    Parameters
    ----------
    scores : CanaryScores
    settings : AuditSettings
    delta : float
        At which epsilon is claimed.
    claimed : float or None
    generator : numpy.random.Generator
        For the bootstrap.

    Raises
    ------
    UserError
        If ``delta`` is not inside (0, 1), or a bound does not fit how the canaries were drawn.
    """
    if not 0 < delta < 1:
        raise UserError(f"audit: delta={delta} must lie between 0 and 1; an audit needs the delta of the claim")
    included, held_out = fit_normal(scores.included), fit_normal(scores.held_out)
    return AuditResult(
        claimed=claimed,
        delta=delta,
        confidence=settings.confidence,
        canaries_included=len(scores.included),
        canaries_held_out=len(scores.held_out),
        bounds=tuple(bound.measure(scores, delta, alpha, generator) for bound, alpha in settings.allotted()),
        estimate=canary_estimate(included, held_out, delta),
        included=included,
        held_out=held_out,
    )


def _strict(bound: Bound) -> dict[str, Any]:
    return {**asdict(bound), "epsilon": _finite(bound.epsilon), "ceiling": _finite(bound.ceiling)}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
