"""The guarantee of a run as its summary states it: in numbers, in one sentence, and what it does not cover."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedalign.federation.account import Account, finite
from fedalign.federation.exposure import Exposure
from fedalign.federation.not_covered import not_covered
from fedalign.federation.shared_units import composition_of
from fedalign.privacy.ledger import Relation, Unit
from fedalign.privacy.metric_release import OpenMetrics
from fedalign.privacy.protection import Protection
from fedalign.privacy.scheme import Scheme

_UNITS = {
    Unit.CLIENT: "everything that one client holds",
    Unit.EXAMPLE: "one judgment, or one text, of one client",
    Unit.USER: "everything that one person of one client judged or wrote",
}
_RELATIONS = {
    "add_or_remove": "being there or not",
    "replace_one": "being replaced by any other",
    "zero_out": "being there or being zeros",
}


def statement(
    privacy: Protection,
    account: Account | None,
    metrics: Sequence[str],
    bounds: Mapping[str, float],
    public: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the object that stands under ``privacy`` in ``summary.json``."""
    secure = privacy.secure is not None
    facts: dict[str, Any] = {
        "unit": None,
        "relation": None,
        "mechanism": None,
        "sampling": None,
        "sampling_rate": None,
        "noise_multiplier": None,
        "releases": 0,
        "epsilon": None,
        "delta": None,
    }
    if account is not None:
        facts |= _spent(privacy, account)
    facts["sentence"] = _sentence(privacy, account)
    facts["secure_sum"] = secure
    facts["clipping"] = _clipping(privacy, bounds)
    facts["metrics"] = type(privacy.metrics).__name__.removesuffix("Metrics").lower()
    facts["released_metrics"] = [] if isinstance(privacy.metrics, OpenMetrics) else list(metrics)
    facts["trust"] = _trust(privacy)
    facts["not_covered"] = not_covered(privacy, account, public)
    return facts


def _spent(privacy: Protection, account: Account) -> dict[str, Any]:
    main = list(account.exposures.values())[-1] if account.exposures else None
    ledger = account.ledger
    local = privacy.local
    return {
        "unit": str(account.unit),
        "relation": _relation(privacy, account),
        "mechanism": "dp_sgd" if local is not None else privacy.mechanism.name if privacy.mechanism else None,
        "sampling": "poisson" if local is not None else None if main is None else str(main.sampling.scheme),
        "sampling_rate": None if main is None else _rate(privacy, main),
        "sampling_rates": {name: _rate(privacy, exposure) for name, exposure in account.exposures.items()},
        "sampling_by_phase": {e.name: str(e.sampling.scheme) for e in account.exposures.values()},
        "noise_multiplier": min(account.noise_multipliers.values(), default=None),
        "noise_multipliers": dict(account.noise_multipliers),
        "releases": ledger.releases,
        "epsilon": finite(ledger.epsilon()),
        "delta": account.delta,
        "budget": privacy.epsilon,
        "epsilon_rdp": finite(ledger.epsilon_rdp()),
        "epsilon_by_phase": {name: finite(value) for name, value in ledger.by_phase().items()},
        "composition": composition_of(list(account.exposures.values())),
    }


def _rate(privacy: Protection, exposure: Exposure) -> float:
    """Return the probability that a unit takes part in a release of a phase."""
    return exposure.sampling.rate if privacy.local is None else privacy.local.in_phase(exposure.name).rate


def _relation(privacy: Protection, account: Account) -> str:
    """Name what neighbouring federations differ in.

    Only coins of their own leave the cohorts of the others as they were when a client is gone; where cohorts are
    dealt from a list, it is there and adds zeros. A client that adds zeros to some phases and is gone from others is
    covered as one that adds zeros to all: that is the same where cohorts are drawn by coins.
    """
    if account.relation is Relation.REPLACE_ONE or privacy.local is not None:
        return str(account.relation)
    coins = all(exposure.sampling.scheme is Scheme.POISSON for exposure in account.exposures.values())
    return "add_or_remove" if coins else "zero_out"


def _sentence(privacy: Protection, account: Account | None) -> str:
    """Say what is promised, to whom, in one sentence."""
    if account is None:
        return (
            "The server sees sums over clients and no client's own contribution; nothing bounds what a sum tells "
            "of those in it."
        )
    epsilon = finite(account.ledger.epsilon())
    if epsilon is None:
        return "Without noise nothing is promised: epsilon is infinite."
    local = privacy.local is not None
    distributed = privacy.mechanism is not None and privacy.mechanism.distributed
    whom = (
        "The server and whoever sees the models"
        if local or distributed
        else "Whoever sees the models, but not the server,"
    )
    apart = _RELATIONS[_relation(privacy, account)]
    return (
        f"{whom} can tell {_UNITS[account.unit]} {apart} apart only as far as "
        f"({epsilon:.3g}, {account.delta:.2g})-differential privacy allows, over the whole run."
    )


def _clipping(privacy: Protection, bounds: Mapping[str, float]) -> dict[str, Any] | None:
    if privacy.local is not None:
        local = privacy.local
        return {"bound": local.clip, "phases": dict(local.clips), "of": f"gradient of one {local.unit}"}
    if privacy.clip is None:
        return None
    adaptive = privacy.clip.adaptive is not None
    return {
        "bound": privacy.clip.bound,
        "phases": dict(privacy.clip.phases),
        "of": "contribution of one client",
        "adaptive": adaptive,
        "last": dict(bounds) if adaptive else None,
    }


def _trust(privacy: Protection) -> str:
    """Say who is trusted with what."""
    if privacy.local is not None:
        return (
            "each client trusts itself, and the server to send the agreed configuration and to ask nobody more often "
            "than planned"
        )
    if privacy.mechanism is not None and privacy.mechanism.distributed:
        return (
            "the server is trusted to follow the protocol: to carry messages, to tell the agreed numbers and not to "
            "invent clients; clients are trusted to clip and to add their share of the noise"
        )
    if privacy.secure is not None:
        clipped = "; clients are trusted to clip" if privacy.clip is not None else ""
        noise = ", and to add the noise" if privacy.mechanism is not None else ""
        return f"the server is trusted to follow the protocol and not to invent clients{noise}{clipped}"
    return "the server is trusted with every contribution, and to add the noise"
