"""Which phases may read the data of the same units, so that what they release adds up for somebody."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from fedalign.federation.exposure import Exposure, Part

Composition = Literal["sequential", "parallel", "mixed"]


def share(one: Exposure, other: Exposure) -> bool:
    """Tell whether a unit's data may be read by both phases."""
    if one.part is None or other.part is None:
        return True
    return not one.part.units.isdisjoint(other.part.units)


def components(exposures: Iterable[Exposure]) -> list[list[Exposure]]:
    """Return the phases in groups, each in order, such that phases of different groups share no unit."""
    groups: list[list[Exposure]] = []
    for exposure in exposures:
        joined = [group for group in groups if any(share(exposure, other) for other in group)]
        apart = [group for group in groups if not any(group is other for other in joined)]
        groups = [*apart, [*(e for group in joined for e in group), exposure]]
    return groups


def composition_of(exposures: Sequence[Exposure]) -> Composition:
    """Name how the phases' costs come together.

    They are ``sequential`` where some unit may be in all of them, so that its cost is that of one after the other;
    ``parallel`` where no unit is in two; else ``mixed``.
    """
    parts = [exposure.part for exposure in exposures if exposure.part is not None]
    if not parts or frozenset.intersection(*(part.units for part in parts)):
        return "sequential"
    return "parallel" if len(components(exposures)) == len(exposures) else "mixed"


def parts_of(exposures: Iterable[Exposure]) -> dict[str, Part]:
    """Return the parts that phases read, by name."""
    return {exposure.part.name: exposure.part for exposure in exposures if exposure.part is not None}
