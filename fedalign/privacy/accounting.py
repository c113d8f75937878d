"""Epsilon of a composition of releases: exact for Gaussians, by privacy loss distributions, or by Rényi divergence."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence

import numpy as np

from fedalign.privacy.events import Event, GaussianEvent, Orders, PoissonGaussianEvent

Composition = frozenset[tuple[Event, int]]

# Close to 1 for large epsilons, up to thousands for small ones.
_ORDERS = (
    *(1.011, 1.015, 1.02, 1.03, 1.05, 1.07),
    *(1 + i / 10 for i in range(1, 60)),
    *range(7, 20),
    *(20, 22, 24, 26, 28, 30, 32, 36, 40, 44, 48, 52, 56, 60),
    *(round(64 * 2 ** (i / 4)) for i in range(33)),
)
_POINTS = 10_000
# Where nothing is protected, numbers overflow before they mean anything.
_NO_NOISE = 1e-6
_LARGEST_BY_PLD = 1e5
_LARGEST_EXPONENT = 700.0


def composition(releases: Iterable[tuple[Event, int]]) -> Composition:
    """Return releases in a form that is the same for equal guarantees; all Gaussians become one.

    T Gaussian releases of noise multiplier z are one of ``z / sqrt(T)``, in law (Dong, Roth and Su 2022).

    Parameters
    ----------
    releases : iterable of (Event, int)
        Events and how often each happened, with the sensitivity of the relation they are accounted under.
    """
    counts: dict[Event, int] = {}
    for event, count in releases:
        if count:
            counts[event] = counts.get(event, 0) + count
    gaussians = [(event.gaussian, count) for event, count in counts.items() if event.gaussian is not None]
    rest = {(event, count) for event, count in counts.items() if event.gaussian is None}
    if not gaussians:
        return frozenset(rest)
    return frozenset(rest | {(GaussianEvent(_composed(gaussians)), 1)})


def epsilon(composed: Composition, delta: float) -> float:
    """Return epsilon at ``delta`` of what `composition` returned.

    Exact for a Gaussian, else from privacy loss distributions, else from Rényi divergence.

    Returns
    -------
    float
        Infinite if a release had no noise.
    """
    if not composed:
        return 0.0
    first = next(iter(composed))[0]
    if len(composed) == 1 and first.gaussian is not None:
        return _gaussian_epsilon(first.gaussian, delta)
    by_rdp = epsilon_rdp(composed, delta)
    if by_rdp > _LARGEST_BY_PLD or any(event.pld_event is None for event, _ in composed):
        return by_rdp
    return _epsilon_pld(composed, delta, by_rdp)


def epsilon_rdp(composed: Composition, delta: float) -> float:
    """Return epsilon at ``delta`` by Rényi divergence alone: looser, and independent of the other ways."""
    if not composed:
        return 0.0
    curve = _curve(composed)
    if not np.isfinite(curve).any():
        return math.inf
    from dp_accounting import rdp

    return float(rdp.compute_epsilon(_ORDERS, curve, delta)[0])


def epsilon_bounds(composed: Sequence[Composition], delta: float) -> Orders:
    """Return for each composition an epsilon that `epsilon` does not exceed, shape (n,), for next to no time.

    By Canonne, Kamath and Steinke (2020), Proposition 12, on Rényi curves.
    """
    orders = np.asarray(_ORDERS)
    curves = np.stack([_curve(each) for each in composed])
    at_orders = curves + np.log1p(-1 / orders) - np.log(delta * orders) / (orders - 1)
    return np.asarray(np.maximum(at_orders.min(axis=1), 0.0), dtype=np.float64)


def covers(composed: Composition, other: Composition) -> bool:
    """Tell whether ``composed`` plainly costs no less than ``other``: each of the other's releases is in it too."""
    counts = dict(composed)
    least = min((event.gaussian for event in counts if event.gaussian is not None), default=math.inf)
    return all(
        counts.get(event, 0) >= count if event.gaussian is None else event.gaussian >= least for event, count in other
    )


def _curve(composed: Composition) -> Orders:
    curve = np.zeros(len(_ORDERS))
    # Ordered, so that one composition has one floating-point sum.
    for event, count in sorted(composed, key=repr) if len(composed) > 1 else composed:
        curve += count * curve_of(event)
    return curve


@functools.lru_cache(maxsize=4096)
def curve_of(event: Event) -> Orders:
    """Return the Rényi curve of one event on the ledger's grid of orders."""
    curve = event.rdp(np.asarray(_ORDERS))
    curve.flags.writeable = False
    return curve


def _composed(gaussians: Iterable[tuple[float, int]]) -> float:
    pairs = list(gaussians)
    if any(noise == 0 for noise, _ in pairs):
        return 0.0
    return 1 / math.hypot(*(math.sqrt(count) / noise for noise, count in pairs))


def _gaussian_epsilon(noise_multiplier: float, delta: float) -> float:
    """Return the Gaussian mechanism's epsilon (Balle and Wang 2018, Theorem 8)."""
    if noise_multiplier < _NO_NOISE:
        return math.inf
    from dp_accounting import gaussian_mechanism

    with np.errstate(divide="ignore"):  # for very much noise it takes the logarithm of a delta of 0
        return float(gaussian_mechanism.get_epsilon_gaussian(noise_multiplier, delta))


def _epsilon_pld(composed: Composition, delta: float, scale: float) -> float:
    """Return epsilon by dp-accounting's privacy loss distributions, whose estimate errs upwards.

    The grid is as fine as epsilon asks for, to one part in thousands; the default of 1e-4 takes minutes for large ones.
    """
    import dp_accounting
    from dp_accounting import pld

    finest = max(_loss_range(event) for event, _ in composed) / (3 * _POINTS)
    interval = max(scale / _POINTS, finest, 1e-7)
    accountant = pld.PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, interval)
    for event, count in sorted(composed, key=repr):
        accountant.compose(event.pld_event, count)
    return float(accountant.get_epsilon(delta))


def _loss_range(event: Event) -> float:
    """Return about how far the privacy loss of one release reaches, ten standard deviations out."""
    rate = event.rate if isinstance(event, PoissonGaussianEvent) else 1.0
    noise = event.noise_multiplier if isinstance(event, PoissonGaussianEvent) else event.gaussian
    if noise is None:
        return 0.0
    exponent = 10 / noise + 1 / (2 * noise**2)
    return math.log1p(rate * math.expm1(exponent)) if exponent < _LARGEST_EXPONENT else exponent + math.log(rate)
