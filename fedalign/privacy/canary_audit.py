"""The canary audit of Andrew et al. (2024): random directions as updates, and how far the result leans towards them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from fedalign.privacy.audit_bound import CanaryScores, Floats, LowerBound
from fedalign.privacy.gaussian_divergence import gaussian_epsilon

_ANGLES, _RADII = 64, 4


@dataclass(frozen=True)
class Normal:
    """A normal distribution of scores."""

    mean: float
    std: float


def canary_directions(count: int, dim: int, generator: np.random.Generator) -> Floats:
    """Return directions drawn uniformly from the unit sphere, shape (count, dim)."""
    drawn: Floats = generator.standard_normal((count, dim))
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    return drawn


def cosine_scores(directions: Floats, change: Floats) -> Floats:
    """Return the cosine between each canary and the model's change over the run.

    Parameters
    ----------
    directions : float array, shape (canaries, dim)
        Unit vectors; a part of the canaries at a time will do.
    change : float array, shape (dim,)
        State after the last round minus state before the first, in the order of the canaries' coordinates.

    Returns
    -------
    float array, shape (canaries,)
        All zero if nothing changed.
    """
    length = float(np.linalg.norm(change))
    return inner_products(directions, change) / length if length else np.zeros(len(directions))


def inner_products(directions: Floats, released: Floats) -> Floats:
    """Return each canary's inner product with a released sum, shape (canaries,)."""
    return np.asarray(directions @ released, dtype=np.float64)


def sphere_null(dim: int) -> Normal:
    """Return how the cosine of a direction that was never used is distributed: N(0, 1/dim), closely for large dim."""
    return Normal(0.0, dim**-0.5)


def fit_normal(scores: Floats) -> Normal:
    """Return mean and standard deviation of some scores."""
    return Normal(float(np.mean(scores)), float(np.std(scores, ddof=1)))


def canary_estimate(included: Normal, null: Normal, delta: float) -> float:
    """Return the epsilon that separates two fitted normals at ``delta``; infinite where one has no spread.

    An estimate, not a bound: it has a sampling error and an upward bias (Andrew et al. 2024, Algorithm 1 and 2).
    """
    if included == null:
        return 0.0
    if included.std == 0 or null.std == 0:
        return float("inf")
    return float(gaussian_epsilon(null.mean, null.std, included.mean, included.std, delta))


def canary_bound(
    included: Floats,
    null: Floats | Normal,
    delta: float,
    confidence: float,
    resamples: int,
    generator: np.random.Generator,
) -> float:
    """Return the smallest epsilon of all pairs of normals that the scores leave plausible.

    Epsilon has a corner where the two normals are the same, and estimates of it are biased upwards: its own bootstrap
    percentiles would find a leak in a mechanism without one. Therefore the bootstrap gives a confidence region of what
    epsilon depends on, which is smooth in the data: the shift of the mean in null deviations and the log ratio of the
    deviations. Over that ellipse epsilon is minimised; the bound is 0 if identical normals lie in it.

    Parameters
    ----------
    included : float array, shape (n_in,)
    null : float array, shape (n_out,), or Normal
        Scores of held-out canaries, or their known distribution.
    delta, confidence : float
    resamples : int
        Of the bootstrap; memory is that of ``resamples`` times the scores.
    generator : numpy.random.Generator

    Returns
    -------
    float
        Below the true epsilon with probability ``confidence`` for many independent and normal scores; 0 if there is
        no spread to estimate.
    """
    own = null if isinstance(null, Normal) else fit_normal(null)
    known = np.array([own.mean]), np.array([own.std])
    centre = _coordinates(*_moments(included[None]), *known)[0]
    nulls = known if isinstance(null, Normal) else _resampled(null, resamples, generator)
    replicates = _coordinates(*_resampled(included, resamples, generator), *nulls)
    if not (np.isfinite(replicates).all() and np.isfinite(centre).all()):
        return 0.0
    root = np.linalg.cholesky(np.cov(replicates, rowvar=False))
    # A normal vector of two coordinates is farther out with probability exp(-radius^2 / 2).
    radius = np.sqrt(-2 * np.log(1 - confidence))
    if np.linalg.norm(np.linalg.solve(root, centre)) <= radius:
        return 0.0
    angles = np.linspace(0, 2 * np.pi, _ANGLES, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)])
    rings = np.concatenate([root @ circle * r for r in np.linspace(0, radius, _RADII + 1)], axis=1)
    shift, log_ratio = centre[:, None] + rings
    return float(np.min(gaussian_epsilon(0.0, 1.0, shift, np.exp(log_ratio), delta)))


def _resampled(scores: Floats, resamples: int, generator: np.random.Generator) -> tuple[Floats, Floats]:
    return _moments(scores[generator.integers(len(scores), size=(resamples, len(scores)))])


def _moments(rows: Floats) -> tuple[Floats, Floats]:
    return rows.mean(1), rows.std(1, ddof=1)


def _coordinates(mean: Floats, std: Floats, null_mean: Floats, null_std: Floats) -> Floats:
    """Return shift and log ratio of pairs of normals, shape (pairs, 2); not finite where one has no spread."""
    with np.errstate(divide="ignore", invalid="ignore"):
        shift, log_ratio = (mean - null_mean) / null_std, np.log(std) - np.log(null_std)
    return np.stack(np.broadcast_arrays(shift, log_ratio), axis=1)


@dataclass(frozen=True)
class CanaryBound(LowerBound):
    """The lower end of a bootstrap confidence region around the Gaussian estimate.

    Parameters
    ----------
    resamples : int
    """

    resamples: Annotated[int, Field(ge=100)]

    name: ClassVar[str] = "Gaussian fit"
    assumes: ClassVar[str] = "scores are many, independent and normal"

    def epsilon(
        self, scores: CanaryScores, delta: float, alpha: float, generator: np.random.Generator
    ) -> tuple[float, str]:
        """Return the smallest epsilon in the region."""
        epsilon = canary_bound(scores.included, scores.held_out, delta, 1 - alpha, self.resamples, generator)
        sides = {"included": fit_normal(scores.included), "held-out": fit_normal(scores.held_out)}
        told = ", ".join(f"{side} N({fit.mean:.3g}, {fit.std:.3g}²)" for side, fit in sides.items())
        return epsilon, told

    def ceiling(self, scores: CanaryScores, delta: float, alpha: float, generator: np.random.Generator) -> float:
        """Return infinity: the fit reaches beyond the canaries that it is made of."""
        return float("inf")
