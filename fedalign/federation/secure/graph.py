"""Who is whose neighbour: a random regular graph, and what is left of it after dropouts."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Mapping, Sequence

Graph = Mapping[str, frozenset[str]]


def random_circulant(names: Sequence[str], neighbours: int) -> Graph:
    """Return a graph in which everyone has ``neighbours`` neighbours (Bell et al. 2020, section 3.2).

    Parameters
    ----------
    names : sequence of str
        The parties; they are put on a circle in random order.
    neighbours : int
        Even: half of them on either side. With ``len(names) - 1`` or more the graph is complete.
    """
    everyone = frozenset(names)
    if neighbours >= len(names) - 1:
        return {name: everyone - {name} for name in names}
    circle = list(names)
    secrets.SystemRandom().shuffle(circle)
    steps = [step for distance in range(1, neighbours // 2 + 1) for step in (distance, -distance)]
    return {
        name: frozenset(circle[(place + step) % len(circle)] for step in steps) for place, name in enumerate(circle)
    }


def core(graph: Graph, alive: Collection[str], needed: Callable[[str], int]) -> set[str]:
    """Return the largest subset of ``alive`` in which every neighbourhood, its owner included, has enough members.

    Parameters
    ----------
    graph : Graph
    alive : collection of str
    needed : callable
        How many members the neighbourhood of a name needs.
    """
    left = set(alive)
    while short := {name for name in left if len(graph[name] & left) + 1 < needed(name)}:
        left -= short
    return left


def connected(graph: Graph, alive: Collection[str]) -> bool:
    """Return whether every two of ``alive`` are linked through others of ``alive``."""
    left = set(alive)
    frontier = {left.pop()} if left else set()
    while frontier:
        frontier = {other for name in frontier for other in graph[name] if other in left}
        left -= frontier
    return not left
