"""Server steps against the formulas of their papers, written in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedalign.contribution import State
from fedalign.federation.server_optimizer import FedAdaptive, FedAvg, FedAvgM, ServerOptimizerSpec

ROUNDS = 6


def deltas() -> list[np.ndarray]:
    generator = np.random.default_rng(3)
    return [generator.normal(scale=0.1, size=(2, 3)) for _ in range(ROUNDS)]


START = np.random.default_rng(4).normal(size=(2, 3))


def ours(spec: ServerOptimizerSpec, dtype: torch.dtype = torch.float64) -> np.ndarray:
    state: State = {"w": torch.tensor(START, dtype=dtype)}
    stepper = spec.build()
    for delta in deltas():
        state = stepper.step(state, {"w": torch.tensor(delta)})
    return state["w"].numpy()


def test_fedavg_adds_the_mean_delta() -> None:
    np.testing.assert_allclose(ours(FedAvg(0.7)), START + 0.7 * sum(deltas()))


def test_fedavg_with_rate_one_is_the_mean_of_the_clients() -> None:
    generator = np.random.default_rng(0)
    clients = generator.normal(size=(5, 2, 3))
    mean = torch.tensor(clients.mean(0))
    start = torch.tensor(START)
    stepped = FedAvg(1.0).build().step({"w": start}, {"w": mean - start})
    np.testing.assert_allclose(stepped["w"].numpy(), clients.mean(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "spec", [FedAvg(1.0), FedAvg(0.5), FedAvgM(1.0, 0.9), FedAdaptive("adam", 1.0, 0.9, 0.99, 0.1)]
)
def test_a_step_leaves_what_it_was_given_alone(spec: ServerOptimizerSpec, dtype: torch.dtype) -> None:
    state, delta = {"w": torch.tensor(START, dtype=dtype)}, {"w": torch.tensor(deltas()[0])}
    moved = spec.build().step(state, delta)["w"]
    assert moved.dtype == dtype
    assert not torch.equal(moved, state["w"])
    assert torch.equal(state["w"], torch.tensor(START, dtype=dtype))
    assert torch.equal(delta["w"], torch.tensor(deltas()[0]))


def test_server_momentum() -> None:
    weights, velocity = START.copy(), np.zeros_like(START)
    for delta in deltas():
        velocity = 0.9 * velocity + delta
        weights = weights + 0.5 * velocity
    np.testing.assert_allclose(ours(FedAvgM(0.5, 0.9)), weights)


@pytest.mark.parametrize("rule", ["adam", "yogi"])
@pytest.mark.parametrize("tau", [1e-3, 0.1])
def test_adaptive_steps_are_algorithm_2_of_reddi_et_al(rule: str, tau: float) -> None:
    beta1, beta2, lr = 0.9, 0.99, 0.03
    x, m, v = START.copy(), np.zeros_like(START), np.full_like(START, tau**2)
    for delta in deltas():
        m = beta1 * m + (1 - beta1) * delta
        if rule == "yogi":
            v = v - (1 - beta2) * delta**2 * np.sign(v - delta**2)
        else:
            v = beta2 * v + (1 - beta2) * delta**2
        x = x + lr * m / (np.sqrt(v) + tau)
    np.testing.assert_allclose(ours(FedAdaptive(rule, lr, beta1, beta2, tau)), x, rtol=1e-12)


def test_momentum_zero_is_fedavg() -> None:
    np.testing.assert_array_equal(ours(FedAvgM(0.5, 0.0)), ours(FedAvg(0.5)))


def test_steps_are_taken_in_double_precision_and_rounded_once() -> None:
    got = ours(FedAvg(1.0), torch.float32)
    assert got.dtype == np.float32
    weights = START.astype(np.float32)
    for delta in deltas():
        weights = (weights.astype(np.float64) + delta).astype(np.float32)
    np.testing.assert_array_equal(got, weights)


ADAPTIVE = [FedAdaptive(rule, 0.1, 0.9, 0.99, 0.01) for rule in ("adam", "yogi")]
SPECS: list[ServerOptimizerSpec] = [FedAvg(1.0), FedAvgM(1.0, 0.9), *ADAPTIVE]


@pytest.mark.parametrize("spec", SPECS)
def test_names_without_a_delta_pass_through_and_nothing_changes_in_place(spec: ServerOptimizerSpec) -> None:
    state = {"w": torch.ones(2), "prior": torch.tensor([3])}
    stepped = spec.build().step(state, {"w": torch.ones(2)})
    assert stepped["prior"] is state["prior"]
    assert stepped["w"].tolist() != [1.0, 1.0]
    assert state["w"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("spec", SPECS)
def test_moments_are_all_that_a_later_step_depends_on(spec: ServerOptimizerSpec) -> None:
    """A fresh optimiser that is given the moments goes on where the old one stood."""
    straight, first = spec.build(), spec.build()
    state: State = {"w": torch.tensor(START)}
    moves = [{"w": torch.tensor(delta)} for delta in deltas()]
    expected, half = state, state
    for move in moves:
        expected = straight.step(expected, move)
    for move in moves[:3]:
        half = first.step(half, move)
    second = spec.build()
    second.moments.update(first.moments)
    for move in moves[3:]:
        half = second.step(half, move)
    assert torch.equal(half["w"], expected["w"])


@pytest.mark.parametrize("spec", SPECS)
def test_narrow_deltas_are_widened_before_anything_else(spec: ServerOptimizerSpec) -> None:
    narrow, wide = spec.build(), spec.build()
    states = {"a": torch.tensor([0.1, 256.0]).bfloat16()}, {"a": torch.tensor([0.1, 256.0]).bfloat16()}
    delta = torch.tensor([0.001, 0.75]).bfloat16()
    for _ in range(3):
        states = narrow.step(states[0], {"a": delta}), wide.step(states[1], {"a": delta.double()})
    assert torch.equal(states[0]["a"], states[1]["a"])
    assert narrow.moments.keys() == wide.moments.keys()
    for name, moment in narrow.moments.items():
        assert moment.dtype == torch.float64
        assert torch.equal(moment, wide.moments[name])


@pytest.mark.parametrize("spec", SPECS)
def test_parameters_have_moments_of_their_own(spec: ServerOptimizerSpec) -> None:
    together, alone = spec.build(), spec.build()
    one, other = torch.tensor(deltas()[0]), torch.tensor(deltas()[1])
    state = {"a": torch.tensor(START), "b": torch.tensor(START)}
    for _ in range(2):
        state = together.step(state, {"a": one, "b": other})
    single: State = {"a": torch.tensor(START)}
    for _ in range(2):
        single = alone.step(single, {"a": one})
    assert torch.equal(state["a"], single["a"])
