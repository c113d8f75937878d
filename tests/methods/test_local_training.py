"""Local training against plain PyTorch loops and PyTorch's own schedulers."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fedalign.contribution import State
from fedalign.methods.local_training import LocalTraining, PlainSGD, load_parameters, train

SETTINGS = LocalTraining(
    steps=4,
    optimizer="sgd",
    lr=0.1,
    schedule="constant",
    period=5,
    final_lr=0.1,
    optimizer_state="reset",
    proximal_mu=0.0,
    max_grad_norm=None,
)


def settings(**changes: object) -> LocalTraining:
    return dataclasses.replace(SETTINGS, **changes)


def world() -> tuple[nn.Module, State, Callable[[nn.Module], Callable[[int], Tensor]]]:
    """Return a network with strange weights, a state to start from, and a loss that differs from step to step."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
        state = {name: torch.randn_like(p) for name, p in network.named_parameters()}
        x, y = torch.randn(10, 5, 3, dtype=torch.float64), torch.randn(10, 5, 1, dtype=torch.float64)
    return network, state, lambda used: lambda step: (used(x[step]) - y[step]).square().mean()


def parameters(network: nn.Module) -> State:
    return {name: parameter.detach().clone() for name, parameter in network.named_parameters()}


def assert_same(one: State, other: State, tolerance: float = 1e-12) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=tolerance, atol=tolerance)


def plain_loop(
    optimizer_class: type[torch.optim.Optimizer], steps: int, lr: float, mu: float = 0.0, bound: float | None = None
) -> State:
    """Train without the package: the proximal term is part of the loss that autograd sees."""
    network, state, make_loss = world()
    load_parameters(network, state)
    optimizer = optimizer_class(network.parameters(), lr=lr)
    for step in range(steps):
        pull = sum((p - state[name]).square().sum() for name, p in network.named_parameters())
        optimizer.zero_grad()
        (make_loss(network)(step) + 0.5 * mu * pull).backward()
        if bound is not None:
            nn.utils.clip_grad_norm_(network.parameters(), bound)
        optimizer.step()
    return parameters(network)


@pytest.mark.parametrize(("name", "optimizer"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam)])
@pytest.mark.parametrize(("mu", "bound"), [(0.0, None), (0.7, None), (0.0, 0.05), (0.7, 0.05)])
def test_it_is_the_plain_loop(
    name: str, optimizer: type[torch.optim.Optimizer], mu: float, bound: float | None
) -> None:
    network, state, make_loss = world()
    chosen = settings(optimizer=name, proximal_mu=mu, max_grad_norm=bound)
    train(network, state, make_loss(network), chosen, 0, 4, {})
    assert_same(parameters(network), plain_loop(optimizer, 4, 0.1, mu, bound), 1e-9)


def test_the_mean_loss_is_returned_and_the_state_left_alone() -> None:
    network, state, make_loss = world()
    before = {name: tensor.clone() for name, tensor in state.items()}
    losses: list[float] = []

    def loss(step: int) -> Tensor:
        value = make_loss(network)(step)
        losses.append(float(value.detach()))
        return value

    mean = train(network, state, loss, settings(), 0, 4, {})
    assert mean == pytest.approx(sum(losses) / 4)
    assert len(losses) == 4
    assert_same(state, before, 0.0)


def test_what_the_network_held_before_does_not_matter() -> None:
    results = []
    for shift in (0.0, 5.0):
        network, state, make_loss = world()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(shift)
        train(network, state, make_loss(network), settings(), 0, 4, {})
        results.append(parameters(network))
    assert_same(results[0], results[1], 0.0)


def rates(chosen: LocalTraining, steps: int, total: int) -> list[float]:
    return [chosen.learning_rate(step, total) for step in range(steps)]


def scheduled(steps: int, lr: float, t_max: int, floor: float) -> list[float]:
    """Return what PyTorch's scheduler gives, also when it is stepped past ``t_max``."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=t_max, eta_min=floor)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_cosine_falls_as_pytorch_s_scheduler_does() -> None:
    chosen = settings(schedule="cosine", lr=0.3, final_lr=0.2)
    assert rates(chosen, 13, 12) == pytest.approx(scheduled(13, 0.3, 12, 0.06))


def test_periodic_cosine_is_pytorch_s_scheduler_stepped_past_its_end() -> None:
    chosen = settings(schedule="cosine_periodic", lr=0.3, period=5)
    got = rates(chosen, 23, 7)
    assert got == pytest.approx(scheduled(23, 0.3, 5, 0.0), abs=1e-12)
    assert got[5] == pytest.approx(0.0, abs=1e-12)
    assert got[10] == pytest.approx(0.3)


def test_a_constant_rate_is_constant() -> None:
    assert set(rates(settings(lr=0.3), 9, 4)) == {0.3}


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_rates_never_rise_within_a_phase(schedule: str) -> None:
    got = rates(settings(schedule=schedule), 50, 50)
    assert all(b <= a for a, b in itertools.pairwise(got))


def test_a_schedule_goes_on_from_round_to_round() -> None:
    """Two rounds of two steps are one round of four, when nothing else differs between them."""
    whole, state, make_loss = world()
    train(whole, state, make_loss(whole), settings(schedule="cosine"), 0, 4, {})
    halves, _, _ = world()
    chosen = settings(schedule="cosine", steps=2)
    train(halves, state, make_loss(halves), chosen, 0, 4, {})
    middle = parameters(halves)
    later = make_loss(halves)
    train(halves, middle, lambda step: later(step + 2), chosen, 2, 4, {})
    assert_same(parameters(halves), parameters(whole))


def test_persisting_moments_make_two_rounds_one_run_of_adam() -> None:
    network, state, make_loss = world()
    chosen = settings(optimizer="adam", optimizer_state="persist", steps=2)
    memory: dict[str, Tensor] = {}
    train(network, state, make_loss(network), chosen, 0, 4, memory)
    later = make_loss(network)
    train(network, parameters(network), lambda step: later(step + 2), chosen, 2, 4, memory)
    assert_same(parameters(network), plain_loop(torch.optim.Adam, 4, 0.1), 1e-9)


def test_resetting_forgets_the_moments() -> None:
    network, state, make_loss = world()
    memory: dict[str, Tensor] = {}
    chosen = settings(optimizer="adam", steps=2)
    train(network, state, make_loss(network), chosen, 0, 4, memory)
    assert memory == {}
    kept = {"optimizer/0.weight/exp_avg": torch.ones(4, 3, dtype=torch.float64)}
    first = parameters(network)
    train(network, state, make_loss(network), chosen, 0, 4, kept)
    assert_same(parameters(network), first, 0.0)


def test_memory_holds_adam_s_moments_by_parameter() -> None:
    network, state, make_loss = world()
    memory: dict[str, Tensor] = {}
    train(network, state, make_loss(network), settings(optimizer="adam", optimizer_state="persist"), 0, 4, memory)
    kinds = ("exp_avg", "exp_avg_sq", "step")
    assert memory.keys() == {f"optimizer/{name}/{kind}" for name in state for kind in kinds}
    assert {float(memory[f"optimizer/{name}/step"]) for name in state} == {4.0}


def test_plain_descent_has_nothing_to_remember() -> None:
    network, state, make_loss = world()
    memory: dict[str, Tensor] = {}
    train(network, state, make_loss(network), settings(optimizer_state="persist"), 0, 4, memory)
    assert memory == {}


def test_a_loss_that_is_no_number_is_an_error_that_says_what_to_do() -> None:
    network, state, _ = world()
    with pytest.raises(FloatingPointError, match=r"lower the lr of local training"):
        train(network, state, lambda step: next(network.parameters()).sum() * math.nan, settings(), 0, 4, {})


def test_loading_asks_for_every_parameter() -> None:
    network, state, _ = world()
    del state["0.weight"]
    with pytest.raises(KeyError, match=r"0\.weight"):
        load_parameters(network, state)


@pytest.mark.parametrize("frozen", [False, True])
def test_plain_descent_is_pytorchs_to_the_last_bit(frozen: bool) -> None:
    ours, theirs = (torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2)) for _ in "ab")
    theirs.load_state_dict(ours.state_dict())
    one, other = PlainSGD(list(ours.parameters()), 0.1), torch.optim.SGD(theirs.parameters(), lr=0.1)
    rows = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    for step in range(4):
        for network, optimizer in ((ours, one), (theirs, other)):
            for parameter in network.parameters():
                parameter.grad = None
            network(rows).square().mean().backward()
            if frozen:
                network[0].bias.grad = None
            optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
