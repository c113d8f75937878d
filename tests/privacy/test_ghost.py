"""Ghost clipping on a whole small GPT-2 against one-by-one clipping, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedalign.errors import UserError
from fedalign.privacy.ghost import GhostGradients
from fedalign.privacy.unit_gradients import HookedGradients, LoopedGradients, UnitGradients, joint_norms

UNITS, LENGTH, WORDS = 4, 6, 11


def language_model(tied: bool) -> nn.Module:
    """Return a random GPT-2 without dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    size = {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": LENGTH, "vocab_size": WORDS}
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = GPT2LMHeadModel(GPT2Config(**size, **still, tie_word_embeddings=tied))
    return model.train()


def sequence_losses(model: Any, tokens: Tensor, weights: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """Return the mean negative log-likelihood of each sequence; positions are told row by row, as Opacus needs."""

    def losses(chosen: Tensor) -> Tensor:
        rows = tokens[chosen]
        positions = torch.arange(LENGTH).repeat(len(rows), 1)
        logits = model(input_ids=rows, position_ids=positions).logits[:, :-1].transpose(1, 2)
        nll = nn.functional.cross_entropy(logits, rows[:, 1:], reduction="none").mean(1)
        return nll if weights is None else nll * weights[chosen]

    return losses


@pytest.fixture
def tokens() -> Tensor:
    """Give sequences of equal length."""
    return torch.randint(WORDS, (UNITS, LENGTH), generator=torch.Generator().manual_seed(0))


def total(gradients: UnitGradients, losses: Callable[[Tensor], Tensor], chosen: Tensor | None = None) -> Tensor:
    try:
        found = gradients.clipped_sum(losses, torch.arange(UNITS) if chosen is None else chosen)
    finally:
        gradients.close()
    return torch.cat([tensor.flatten() for tensor in found])


@pytest.mark.parametrize("clip", [0.5, 1e3])
def test_it_is_one_by_one_clipping(tokens: Tensor, clip: float) -> None:
    model = language_model(tied=False)
    losses = sequence_losses(model, tokens)
    expected = total(LoopedGradients(model, clip), losses)
    found = total(GhostGradients(model, clip), losses)
    assert float((found - expected).norm()) <= 2e-4 * float(expected.norm())
    hooked = total(HookedGradients(model, clip, functorch=False), losses)
    assert float((hooked - expected).norm()) <= 1e-5 * float(expected.norm())


def test_a_unit_s_norm_is_within_the_bound(tokens: Tensor) -> None:
    """Its norms are less exact than the others', which a margin makes up for."""
    model = language_model(tied=False)
    for unit in range(UNITS):
        found = total(GhostGradients(model, 0.5), sequence_losses(model, tokens), torch.tensor([unit]))
        assert 0.499 < float(joint_norms([found[None]])) <= 0.5 * (1 + 1e-6)


def test_what_is_not_finite_adds_nothing(tokens: Tensor) -> None:
    model = language_model(tied=False)
    weights = torch.tensor([1.0, torch.nan, 1.0, torch.inf])
    found = total(GhostGradients(model, 0.5), sequence_losses(model, tokens, weights))
    expected = total(LoopedGradients(model, 0.5), sequence_losses(model, tokens), torch.tensor([0, 2]))
    assert float((found - expected).norm()) <= 2e-4 * float(expected.norm())


def test_tied_embeddings_are_refused(tokens: Tensor) -> None:
    model = language_model(tied=True)
    with pytest.raises(UserError, match=r"privacy\.local\.grad_sample=ghost: .*; set hooks or loop"):
        total(GhostGradients(model, 0.5), sequence_losses(model, tokens))


def test_two_passes_through_the_same_layers_are_refused(tokens: Tensor) -> None:
    model = language_model(tied=False)
    one, other = sequence_losses(model, tokens), sequence_losses(model, tokens.flip(1))
    with pytest.raises(UserError, match="grad_sample=ghost"):
        total(GhostGradients(model, 0.5), lambda chosen: one(chosen) - other(chosen))


def test_several_rows_a_unit_are_refused(tokens: Tensor) -> None:
    model = language_model(tied=False)
    losses = sequence_losses(model, tokens)
    with pytest.raises(UserError, match="one row a unit"):
        total(
            GhostGradients(model, 0.5),
            lambda chosen: losses(torch.stack([2 * chosen, 2 * chosen + 1], 1).flatten()).view(-1, 2).mean(1),
            torch.arange(2),
        )


def test_shared_positions_are_refused(tokens: Tensor) -> None:
    """GPT-2 reads one row of positions for the whole batch unless told otherwise."""
    model: Any = language_model(tied=False)

    def losses(chosen: Tensor) -> Tensor:
        logits = model(input_ids=tokens[chosen]).logits[:, :-1].transpose(1, 2)
        return nn.functional.cross_entropy(logits, tokens[chosen, 1:], reduction="none").mean(1)

    with pytest.raises(UserError, match="wpe"):
        total(GhostGradients(model, 0.5), losses)
