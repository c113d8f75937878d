"""The delta of a guarantee: how small it must be for the number of units that it protects."""

from __future__ import annotations

from fedalign.errors import UserError

_EXPONENT = -1.1
_OF_ONE = 1e-5


def default_delta(units: int) -> float:
    """Return ``units ** -1.1``, below one over the number of units; 1e-5 for a single unit.

    Raises
    ------
    ValueError
        If there are no units.
    """
    if units < 1:
        raise ValueError(f"units={units} must be at least 1")
    return units**_EXPONENT if units > 1 else _OF_ONE


def check_delta(delta: float, units: int) -> None:
    """Refuse a delta at which publishing a random unit's data outright would pass for private.

    Raises
    ------
    UserError
        If delta is not inside (0, 1), or not below one over the number of units.
    """
    if not 0 < delta < 1:
        raise UserError(f"privacy.delta={delta} must lie between 0 and 1")
    if delta * units >= 1:
        raise UserError(
            f"privacy.delta={delta} must be below 1/{units}, one over the number of units; "
            f"{default_delta(units):.3g} is customary"
        )
