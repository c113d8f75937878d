"""Graphs: regular, random, and what dropouts leave of them."""

from __future__ import annotations

import networkx
import numpy as np
import pytest

from fedalign.federation.secure.graph import connected, core, random_circulant

NAMES = [f"c{place}" for place in range(11)]


@pytest.mark.parametrize("neighbours", [2, 4, 8, 10, 20])
def test_everyone_has_as_many_neighbours_and_is_theirs(neighbours: int) -> None:
    graph = random_circulant(NAMES, neighbours)
    for name, others in graph.items():
        assert len(others) == min(neighbours, 10)
        assert name not in others
        assert all(name in graph[other] for other in others)
    assert connected(graph, NAMES)


def test_every_pair_is_equally_likely() -> None:
    counts = np.zeros((11, 11))
    for _ in range(2000):
        for name, others in random_circulant(NAMES, 2).items():
            counts[NAMES.index(name), [NAMES.index(other) for other in others]] += 1
    pairs = counts[np.triu_indices(11, 1)]
    assert pairs.sum() == 11 * 2000
    assert np.abs(pairs - 400).max() < 6 * np.sqrt(400)


@pytest.mark.parametrize("case", range(40))
def test_core_and_connection_against_networkx(case: int) -> None:
    generator = np.random.default_rng(case)
    graph = random_circulant(NAMES, int(generator.choice([2, 4])))
    alive = [name for name in NAMES if generator.random() < 0.7]
    needed = int(generator.integers(1, 6))
    known = networkx.Graph([(name, other) for name in graph for other in graph[name]]).subgraph(alive)
    assert core(graph, alive, lambda _: needed) == set(networkx.k_core(known, needed - 1))
    if alive:
        assert connected(graph, alive) == networkx.is_connected(known)


def test_nobody_is_connected() -> None:
    assert connected({}, [])
    assert random_circulant([], 2) == {}
