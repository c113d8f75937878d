"""The KL term: its weight and temperature over time, its forms, and mixture weights that stay on the client."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedalign.methods.base import Memory
from fedalign.methods.divergence import Annealing, Divergence, LocalWeights
from fedalign.methods.latent_prior import Components
from fedalign.objectives.latent import gaussian_kl, mixture_kl, mixture_kl_bound, standard_kl

DIM = 3


def divergence(**changes: Any) -> Divergence:
    settings: dict[str, Any] = {
        "beta": 0.1,
        "form": "mixture",
        "weights": "gumbel",
        "temperature": 2.0,
        "final_temperature": 0.5,
        "samples": 4,
        "annealing": Annealing("constant", 1, 0.0),
    }
    return Divergence(**{**settings, **changes})


def components(*ids: int, seed: int = 0) -> Components:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.log_softmax(torch.randn(len(ids), generator=generator), 0)
    means, log_variances = torch.randn(2, len(ids), DIM, generator=generator)
    return Components(torch.tensor(ids), weights, means, log_variances)


def posterior(count: int = 5) -> tuple[Tensor, Tensor]:
    mean, log_variance = torch.randn(2, count, DIM, generator=torch.Generator().manual_seed(7))
    return mean, log_variance


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(rounds=st.integers(1, 20), floor=st.floats(0, 1), position=st.floats(0, 60))
def test_a_schedule_stays_between_its_floor_and_one(rounds: int, floor: float, position: float) -> None:
    for schedule in ("constant", "linear", "cyclical"):
        assert floor - 1e-9 <= Annealing(schedule, rounds, floor).factor(position) <= 1.0  # type: ignore[arg-type]


def test_the_weight_rises_as_its_schedule_says() -> None:
    linear, cyclical = Annealing("linear", 10, 0.2), Annealing("cyclical", 10, 0.2)
    assert [linear.factor(p) for p in (0, 5, 10, 30)] == pytest.approx([0.2, 0.6, 1.0, 1.0])
    assert [cyclical.factor(p) for p in (0, 5, 9.9999, 10, 15)] == pytest.approx([0.2, 0.6, 1.0, 0.2, 0.6], abs=1e-6)
    assert Annealing("constant", 10, 0.2).factor(0) == 1.0


def test_the_temperature_falls_by_equal_factors() -> None:
    term = divergence(temperature=2.0, final_temperature=0.5)
    assert [term.temperature_at(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([2.0, 1.0, 0.5])


@pytest.mark.parametrize("form", ["standard", "bound", "mixture"])
def test_without_components_every_form_is_the_standard_prior(form: str) -> None:
    value = divergence(form=form).value(*posterior(), None, None, generator())
    assert torch.equal(value, standard_kl(*posterior()))


def test_the_standard_form_does_not_look_at_components() -> None:
    value = divergence(form="standard").value(*posterior(), components(1, 2), None, generator())
    assert torch.equal(value, standard_kl(*posterior()))


def test_each_form_is_its_objective() -> None:
    parts, (mean, log_variance) = components(1, 2, 3), posterior()
    bound = divergence(form="bound").value(mean, log_variance, parts, None, generator())
    expected = mixture_kl_bound(mean, log_variance, parts.log_weights.exp(), parts.means, parts.log_variances)
    assert torch.equal(bound, expected)
    sampled = divergence(samples=6).value(mean, log_variance, parts, None, generator(3))
    noise = torch.randn(6, *mean.shape, generator=generator(3))
    expected = mixture_kl(mean, log_variance, parts.log_weights, parts.means, parts.log_variances, noise)
    assert torch.equal(sampled, expected)


@pytest.mark.parametrize("form", ["bound", "mixture"])
def test_own_weights_come_before_the_server_s(form: str) -> None:
    parts, (mean, log_variance) = components(1, 2), posterior()
    only_first = torch.tensor([0.0, -200.0])
    value = divergence(form=form, samples=4000).value(mean, log_variance, parts, only_first, generator())
    expected = gaussian_kl(mean, log_variance, parts.means[0], parts.log_variances[0])
    torch.testing.assert_close(value, expected, rtol=0.1, atol=0.1)


def test_a_component_that_is_the_standard_prior_is_the_standard_prior() -> None:
    parts = Components(torch.zeros(1).long(), torch.zeros(1), torch.zeros(1, DIM), torch.zeros(1, DIM))
    value = divergence(form="bound").value(*posterior(), parts, None, generator())
    assert torch.equal(value, standard_kl(*posterior()))
    sampled = divergence(samples=20_000).value(*posterior(), parts, None, generator())
    torch.testing.assert_close(sampled, standard_kl(*posterior()), rtol=0.02, atol=0.05)


def test_fresh_weights_are_the_server_s() -> None:
    parts = components(4, 2, 9)
    weights = LocalWeights(parts, {}, "ann")
    assert torch.equal(weights.logits.detach(), parts.log_weights)
    assert weights.logits.requires_grad
    with torch.no_grad():
        weights.logits += 1
    assert torch.equal(components(4, 2, 9).log_weights, parts.log_weights)


def test_weights_are_drawn_with_fresh_noise() -> None:
    weights, draws = LocalWeights(components(1, 2, 3), {}, "ann"), generator()
    once, again = weights.draw(1.0, draws), weights.draw(1.0, draws)
    assert not torch.equal(once, again)
    assert float(once.detach().exp().sum()) == pytest.approx(1.0)
    once.sum().backward()
    assert weights.logits.grad is not None


def test_what_was_learnt_is_remembered_by_component_across_a_growing_bank() -> None:
    memory: Memory = {}
    before = components(10, 20, 30, seed=1)
    weights = LocalWeights(before, memory, "ann")
    learnt = torch.tensor([2.0, -1.0, 0.5])
    with torch.no_grad():
        weights.logits += learnt
    weights.remember(memory)
    same = LocalWeights(before, memory, "ann")
    torch.testing.assert_close(same.logits, weights.logits)
    grown = components(5, 10, 20, 25, 30, 40, seed=2)
    after = LocalWeights(grown, memory, "ann").logits.detach()
    deviation = after - grown.log_weights
    torch.testing.assert_close(deviation, torch.tensor([0.0, 2.0, -1.0, 0.0, 0.5, 0.0]))
    # Somebody else's weights are not found.
    assert torch.equal(LocalWeights(grown, memory, "ben").logits.detach(), grown.log_weights)


def test_an_untouched_weight_takes_no_more_than_the_server_gives_however_the_bank_grew() -> None:
    """Otherwise whoever is in the bank early would weigh more than all who come later."""
    memory: Memory = {}
    LocalWeights(Components(torch.arange(2), torch.zeros(2) - 0.6931, *torch.zeros(2, 2, DIM)), memory, "ann").remember(
        memory
    )
    many = Components(torch.arange(100), torch.full((100,), 0.01).log(), *torch.zeros(2, 100, DIM))
    weights = torch.softmax(LocalWeights(many, memory, "ann").logits.detach(), 0)
    torch.testing.assert_close(weights, torch.full((100,), 0.01))


def test_memory_holds_tensors_of_its_own() -> None:
    memory: Memory = {}
    parts = components(1, 2)
    weights = LocalWeights(parts, memory, "ann")
    weights.remember(memory)
    kept = {name: tensor.clone() for name, tensor in memory.items()}
    with torch.no_grad():
        weights.logits += 3
    parts.ids.add_(1)
    assert all(torch.equal(memory[name], kept[name]) for name in kept)
    assert not any(tensor.requires_grad for tensor in memory.values())
