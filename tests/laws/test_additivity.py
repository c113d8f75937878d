"""Law 1: any partition of the cohort into workers gives the same total."""

import itertools

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedalign.contribution import Contribution, RunningTotal, total


def cohort(seed: int, size: int) -> list[Contribution]:
    """Contributions of different scales, some lacking names that others have."""
    generator = np.random.default_rng(seed)
    return [
        Contribution(
            {
                name: torch.tensor(generator.normal(scale=10.0 ** generator.integers(-3, 4), size=(3, 2)), dtype=dtype)
                for name, dtype in (("delta/a", torch.float32), ("delta/b", torch.float64), ("delta/c", torch.bfloat16))
                if generator.random() < 0.8
            },
            {"weight": float(generator.random()), f"metric|{place % 2}": 1.0},
        )
        for place in range(size)
    ]


@given(seed=st.integers(0, 10_000), size=st.integers(1, 12), data=st.data())
def test_workers_do_not_change_the_total(seed: int, size: int, data: st.DataObject) -> None:
    clients = cohort(seed, size)
    cuts = sorted(data.draw(st.lists(st.integers(0, size), max_size=5)))
    edges = [0, *cuts, size]
    workers = [total(clients[a:b]) for a, b in itertools.pairwise(edges)]
    straight, parted = total(clients), total(workers)
    assert straight.tensors.keys() == parted.tensors.keys()
    for name, tensor in straight.tensors.items():
        assert tensor.dtype == torch.float64
        torch.testing.assert_close(parted.tensors[name], tensor, rtol=1e-12, atol=1e-9)
    assert straight.scalars.keys() == parted.scalars.keys()
    for name, value in straight.scalars.items():
        assert abs(parted.scalars[name] - value) < 1e-9


def test_the_total_is_exact_where_float32_would_lose_a_client() -> None:
    large, small = torch.tensor([16_777_216.0]), torch.tensor([1.0])
    assert float(large + small) == 16_777_216.0
    summed = total([Contribution({"x": large}), Contribution({"x": small})])
    assert float(summed.tensors["x"]) == 16_777_217.0


def test_adding_leaves_the_addends_alone() -> None:
    one = Contribution({"x": torch.ones(2, dtype=torch.float64)}, {"n": 1.0})
    running = RunningTotal()
    running.add(one)
    running.add(one)
    assert running.value().tensors["x"].tolist() == [2.0, 2.0]
    assert one.tensors["x"].tolist() == [1.0, 1.0]
