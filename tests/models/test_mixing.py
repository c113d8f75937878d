"""How experts' distributions become one, where not all have a part in every text, against dense loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedalign.models.experts import Pairs
from fedalign.models.mixing import Linear, LogLinear, Mixing, spoken_of
from fedalign.models.mixture import expert_log_weights

B, S, N, V = 4, 3, 3, 7
seeds = st.integers(0, 10**6)
mixings = pytest.mark.parametrize("mixing", [Linear(), LogLinear()])


def case(seed: int) -> tuple[Tensor, Pairs, Tensor, Tensor]:
    """Log-weights (B, S, N), pairs, their log-probabilities (P, S, V) and tokens (B, S)."""
    generator = torch.Generator().manual_seed(seed)
    active = torch.rand(B, N, generator=generator) < 0.6
    active[torch.arange(B), torch.randint(N, (B,), generator=generator)] = True
    scores = 2 * torch.randn(B, S, N, generator=generator)
    pairs = Pairs.of(active)
    logits = 3 * torch.randn(len(pairs.text), S, V, generator=generator)
    tokens = torch.randint(V, (B, S), generator=generator)
    return expert_log_weights(scores, active[:, None]), pairs, logits.log_softmax(2), tokens


def plain(mixing: Mixing, log_weights: Tensor, pairs: Pairs, log_probs: Tensor, row: int, place: int) -> Tensor:
    """The oracle: the mixture at one place, from the experts of that text, one after another."""
    total = torch.zeros(V, dtype=torch.float64)
    for number, (text, expert) in enumerate(zip(pairs.text.tolist(), pairs.expert.tolist(), strict=True)):
        if text == row:
            alpha = math.exp(float(log_weights[row, place, expert]))
            own = log_probs[number, place].double()
            total += alpha * (own.exp() if isinstance(mixing, Linear) else own)
    raised = total if isinstance(mixing, Linear) else total.exp()
    return (raised / raised.sum()).log().float()


@mixings
@given(seed=seeds)
def test_the_next_token_is_drawn_from_the_mixture(mixing: Mixing, seed: int) -> None:
    log_weights, pairs, log_probs, _ = case(seed)
    for place in range(S):
        found = mixing.next_token(log_weights[:, place], log_probs[:, place], pairs)
        assert found.shape == (B, V)
        for row in range(B):
            wanted = plain(mixing, log_weights, pairs, log_probs, row, place)
            torch.testing.assert_close(found[row], wanted, atol=1e-5, rtol=1e-5)


@mixings
@given(seed=seeds)
def test_training_sees_what_was_drawn_from(mixing: Mixing, seed: int) -> None:
    log_weights, pairs, log_probs, tokens = case(seed)
    spoken = spoken_of(pairs, log_probs, tokens, (B, N), mixing.needs_whole)
    found = mixing.log_probability(log_weights, spoken)
    assert found.shape == (B, S)
    for place in range(S):
        mixed = mixing.next_token(log_weights[:, place], log_probs[:, place], pairs)
        wanted = mixed.gather(1, tokens[:, place, None])[:, 0]
        torch.testing.assert_close(found[:, place], wanted, atol=1e-5, rtol=1e-5)


@mixings
def test_the_order_of_pairs_does_not_matter(mixing: Mixing) -> None:
    log_weights, pairs, log_probs, tokens = case(0)
    order = torch.randperm(len(pairs.text), generator=torch.Generator().manual_seed(0))
    mixed = Pairs(pairs.text[order], pairs.expert[order])
    before = mixing.next_token(log_weights[:, 0], log_probs[:, 0], pairs)
    torch.testing.assert_close(mixing.next_token(log_weights[:, 0], log_probs[order][:, 0], mixed), before)
    first = spoken_of(pairs, log_probs, tokens, (B, N), True)
    second = spoken_of(mixed, log_probs[order], tokens, (B, N), True)
    assert torch.equal(first.chosen, second.chosen)
    assert first.whole is not None
    assert second.whole is not None
    assert torch.equal(first.whole, second.whole)


@mixings
def test_all_weight_on_one_expert_is_that_expert(mixing: Mixing) -> None:
    _, _, log_probs, _ = case(0)
    pairs = Pairs.of(torch.ones(2, N, dtype=torch.bool))
    log_probs = log_probs[: 2 * N, 0]
    weights = torch.full((2, N), -math.inf)
    weights[0, 1] = weights[1, 2] = 0.0
    found = mixing.next_token(weights, log_probs, pairs)
    torch.testing.assert_close(found, log_probs[[1, N + 2]], atol=1e-6, rtol=1e-6)


def test_spoken_is_dense_over_experts() -> None:
    _, pairs, log_probs, tokens = case(3)
    found = spoken_of(pairs, log_probs, tokens, (B, N), True)
    assert found.whole is not None
    assert found.chosen.shape == (B, S, N)
    assert found.whole.shape == (B, S, N, V)
    asked = {pair: number for number, pair in enumerate(zip(pairs.text.tolist(), pairs.expert.tolist(), strict=True))}
    assert len(asked) < B * N, "some expert must not be asked"
    for row in range(B):
        for expert in range(N):
            number = asked.get((row, expert))
            wanted = torch.zeros(S, V) if number is None else log_probs[number]
            assert torch.equal(found.whole[row, :, expert], wanted)
            for place in range(S):
                assert found.chosen[row, place, expert] == wanted[place, tokens[row, place]]


@pytest.mark.parametrize("whole", [True, False])
def test_rows_of_what_was_spoken(whole: bool) -> None:
    _, pairs, log_probs, tokens = case(1)
    found = spoken_of(pairs, log_probs, tokens, (B, N), whole)
    index = torch.tensor([2, 0])
    rows = found.rows(index)
    assert torch.equal(rows.chosen, found.chosen[index])
    assert torch.equal(rows.tokens, tokens[index])
    assert (rows.whole is not None) == (found.whole is not None) == whole
    if rows.whole is not None and found.whole is not None:
        assert torch.equal(rows.whole, found.whole[index])


@mixings
def test_weights_learn_and_idle_experts_do_not(mixing: Mixing) -> None:
    _, pairs, log_probs, tokens = case(2)
    active = torch.zeros(B, N, dtype=torch.bool).index_put((pairs.text, pairs.expert), torch.tensor(True))
    spoken = spoken_of(pairs, log_probs, tokens, (B, N), mixing.needs_whole)
    scores = torch.zeros(B, S, N, requires_grad=True)
    found = mixing.log_probability(expert_log_weights(scores, active[:, None]), spoken)
    (gradient,) = torch.autograd.grad(found.sum(), scores)
    assert gradient.isfinite().all()
    several = active & (active.sum(1, keepdim=True) > 1)
    assert gradient.abs().sum(1)[several].min() > 0
    assert not gradient.abs().sum(1)[~several].any()


def test_only_log_linear_needs_distributions() -> None:
    assert not Linear().needs_whole
    assert LogLinear().needs_whole
