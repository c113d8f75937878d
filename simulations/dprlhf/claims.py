"""What the experiment has to show, each claim as a difference that must not be negative, computed from the results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fedalign.report.statistics import Estimate, mean_interval
from simulations.dprlhf.record import Results, SeedResult

_Value = Callable[[SeedResult], float]


@dataclass(frozen=True)
class Claim:
    """That one value is at least another, on the mean over the seeds that both have.

    Parameters
    ----------
    text : str
    arm : str
    value : callable from SeedResult to float
    baseline_arm : str
    baseline : callable from SeedResult to float
    """

    text: str
    arm: str
    value: _Value
    baseline_arm: str
    baseline: _Value

    def difference(self, found: Results) -> Estimate | None:
        """Return the difference paired by seed; None where no seed has both."""
        ones, others = found.get(self.arm, {}), found.get(self.baseline_arm, {})
        shared = sorted(set(ones) & set(others))
        return mean_interval([self.value(ones[s]) - self.baseline(others[s]) for s in shared]) if shared else None


def aligned(result: SeedResult) -> float:
    """Return the mean reward after reinforcement learning."""
    return result.aligned.reward


def tuned(result: SeedResult) -> float:
    """Return the mean reward after fine-tuning."""
    return result.tuned.reward


def pretrained(result: SeedResult) -> float:
    """Return the mean reward before any training."""
    return result.pretrained.reward


def gain(result: SeedResult) -> float:
    """Return what training has added to the mean reward."""
    return result.gain


def half_gain(result: SeedResult) -> float:
    """Return half of it."""
    return result.gain / 2


CLAIMS = (
    Claim("reward without privacy ≥ at epsilon 8", "none", aligned, "eps8", aligned),
    Claim("reward at epsilon 8 ≥ at epsilon 4", "eps8", aligned, "eps4", aligned),
    Claim("reward at epsilon 4 ≥ before any training", "eps4", aligned, "eps4", pretrained),
    Claim("gain at epsilon 4 ≥ half of the gain without privacy", "eps4", gain, "none", half_gain),
    Claim("at epsilon 1, reward ≥ after its own fine-tuning", "eps1", aligned, "eps1", tuned),
)


def verdict(difference: Estimate | None) -> str:
    """Return whether a claim holds on the mean, and whether chance could turn that round.

    Parameters
    ----------
    difference : Estimate or None
        Of what the claim says is not negative.
    """
    if difference is None:
        return "not run"
    holds = "yes" if difference.mean >= 0 else "no"
    if difference.half_width is None:
        return f"{holds}, on one seed"
    return holds if abs(difference.mean) > difference.half_width else f"{holds}, but within chance"
