"""Labels of sampled pairs: the most decided pair, either order, under every latent; near-ties teach nothing."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedalign.methods.latent_labels import label_pairs


def dot(first: torch.Tensor, second: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """A taste: the inner product of features and latent."""
    return ((first - second) * z[:, None]).sum(2)


def biased(first: torch.Tensor, second: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """The same taste of a reader who likes whatever stands first."""
    return dot(first, second, z) + 100.0


@given(seed=st.integers(0, 99), prompts=st.integers(1, 4), k=st.integers(2, 5), latents=st.integers(1, 3))
def test_each_latent_gets_the_pair_that_it_is_most_decided_on(seed: int, prompts: int, k: int, latents: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(prompts, k, 3, generator=generator)
    z = torch.randn(prompts, latents, 3, generator=generator)
    found = label_pairs(features, z, dot, 0.0)
    assert len(found.prompt) == prompts * latents
    for n, p, chosen, rejected in zip(*(t.tolist() for t in vars(found).values()), strict=True):
        scores = (features[n] @ z[n, p]).tolist()
        best = max(abs(a - b) for a, b in itertools.combinations(scores, 2))
        assert scores[chosen] - scores[rejected] == pytest.approx(best, rel=1e-4)


def test_opposed_latents_want_the_opposite() -> None:
    features = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])
    found = label_pairs(features, torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]]), dot, 0.0)
    assert found.chosen.tolist() == [0, 1]
    assert found.rejected.tolist() == [1, 0]


def test_a_response_s_place_does_not_count() -> None:
    features = torch.tensor([[[-1.0], [1.0]]])
    for logits in (dot, biased):
        found = label_pairs(features, torch.ones(1, 1, 1), logits, 0.0)
        assert (found.chosen.tolist(), found.rejected.tolist()) == ([1], [0])


@pytest.mark.parametrize(("margin", "kept"), [(0.0, [0, 1]), (0.5, [1]), (5.0, [])])
def test_near_ties_and_equal_responses_are_left_out(margin: float, kept: list[int]) -> None:
    features = torch.tensor([[[0.2], [0.0]], [[2.0], [0.0]], [[7.0], [7.0]]])
    found = label_pairs(features, torch.ones(3, 1, 1), dot, margin)
    assert found.prompt.tolist() == kept
