"""The orthogonal prototype loss, written out entry by entry."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedalign.objectives.prototypes import orthogonal_prototypes, orthogonality, prototype_pull


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(seed=st.integers(0, 999), count=st.integers(1, 5))
def test_the_pull_is_a_mean_over_dimensions(seed: int, count: int) -> None:
    z, prototypes = draw(seed, 6, 5), draw(seed + 1, count, 5)
    labels = torch.arange(6) % count
    by_hand = [
        sum((float(z[n, k]) - float(prototypes[labels[n], k])) ** 2 for k in range(5)) / 5 for n in range(len(z))
    ]
    assert prototype_pull(z, prototypes, labels).tolist() == pytest.approx(by_hand, rel=1e-4)


@given(seed=st.integers(0, 999), scale=st.floats(0.5, 8))
def test_orthogonality_is_the_squared_deviation_of_every_entry(seed: int, scale: float) -> None:
    prototypes = draw(seed, 3, 4)
    by_hand = sum(
        (float(prototypes[i] @ prototypes[j]) / scale**2 - (1.0 if i == j else 0.0)) ** 2
        for i in range(3)
        for j in range(3)
    )
    assert float(orthogonality(prototypes, scale)) == pytest.approx(by_hand, rel=1e-4)


@given(seed=st.integers(0, 999), count=st.integers(1, 6), extra=st.integers(0, 6), scale=st.floats(0.5, 8))
def test_fresh_prototypes_are_orthogonal_and_as_long_as_asked(seed: int, count: int, extra: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    prototypes = orthogonal_prototypes(count, count + extra, scale, generator)
    assert prototypes.shape == (count, count + extra)
    torch.testing.assert_close(prototypes.norm(dim=1), torch.full((count,), scale), rtol=1e-4, atol=0)
    assert float(orthogonality(prototypes, scale)) < 1e-9
    # Twice as long is no longer right.
    assert float(orthogonality(2 * prototypes, scale)) == pytest.approx(9.0 * count, rel=1e-4)


def test_prototypes_are_a_uniform_draw_over_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    many = torch.stack([orthogonal_prototypes(2, 3, 1.0, generator) for _ in range(4000)])
    # No direction is preferred: mean zero, and a third of the squared length in each dimension.
    torch.testing.assert_close(many.mean(0), torch.zeros(2, 3), atol=0.05, rtol=0)
    torch.testing.assert_close(many.square().mean(0), torch.full((2, 3), 1 / 3), atol=0.03, rtol=0)


def test_descent_on_the_loss_makes_prototypes_orthogonal() -> None:
    prototypes = draw(0, 3, 4).requires_grad_()
    for _ in range(400):
        (gradient,) = torch.autograd.grad(orthogonality(prototypes, 2.0), prototypes)
        prototypes = (prototypes - 0.2 * gradient).detach().requires_grad_()
    torch.testing.assert_close(prototypes @ prototypes.T, 4 * torch.eye(3), atol=1e-2, rtol=0)
