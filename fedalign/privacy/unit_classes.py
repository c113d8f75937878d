"""Which units are alike: those that were in the same releases, the same number of times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Signature = tuple[tuple[int, int], ...]


def signatures(sources: Sequence[Mapping[str, int]]) -> set[Signature]:
    """Return the classes of units, each as ``(source, count)`` pairs in the order of the sources.

    Parameters
    ----------
    sources : sequence of mappings
        Each from a unit to how often it was in.

    Returns
    -------
    set of tuples
        With the empty one: there may always be a unit that is in none.
    """
    per_unit: dict[str, list[tuple[int, int]]] = {}
    for source, counts in enumerate(sources):
        for unit, count in counts.items():
            per_unit.setdefault(unit, []).append((source, count))
    return {(), *map(tuple, per_unit.values())}
