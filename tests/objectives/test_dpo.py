"""DPO: closed forms, masks, and gradients that point the right way."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedalign.objectives.dpo import dpo_loss, sequence_log_probability


def test_a_sequence_is_the_product_of_its_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 6, 5, generator=generator)
    tokens = torch.randint(0, 5, (3, 6), generator=generator)
    mask = torch.tensor([[0, 0, 1, 1, 1, 0], [0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
    found = sequence_log_probability(logits, tokens, mask)
    for row in range(3):
        expected = 1.0
        for t in range(6):
            if mask[row, t]:
                shares = [math.exp(v) for v in logits[row, t - 1].tolist()]
                expected *= shares[tokens[row, t]] / sum(shares)
        assert float(found[row]) == pytest.approx(math.log(expected), abs=1e-5)


def test_nothing_predicts_the_first_token() -> None:
    logits, tokens = torch.randn(1, 3, 4), torch.tensor([[1, 2, 3]])
    with_first = sequence_log_probability(logits, tokens, torch.tensor([[1, 1, 1]]))
    assert torch.equal(with_first, sequence_log_probability(logits, tokens, torch.tensor([[0, 1, 1]])))


def test_padding_adds_nothing_even_where_logits_are_infinite() -> None:
    logits = torch.zeros(1, 4, 3)
    logits[0, 2] = torch.tensor([-torch.inf, 0.0, 0.0])
    logits.requires_grad_()
    value = sequence_log_probability(logits, torch.tensor([[0, 1, 2, 0]]), torch.tensor([[0, 1, 1, 0]]))
    assert value.item() == pytest.approx(2 * math.log(1 / 3))
    value.sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_half_precision_is_summed_in_single() -> None:
    logits = torch.randn(2, 50, 8, generator=torch.Generator().manual_seed(1)).bfloat16()
    tokens, mask = torch.zeros(2, 50, dtype=torch.int64), torch.ones(2, 50)
    found = sequence_log_probability(logits, tokens, mask)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, sequence_log_probability(logits.double(), tokens, mask).float())


finite = st.floats(-50, 50)


@given(finite, finite, finite, finite, st.floats(0.01, 2))
def test_the_loss_is_the_papers(pc: float, pr: float, rc: float, rr: float, beta: float) -> None:
    loss, margin = dpo_loss(*(torch.tensor([v], dtype=torch.float64) for v in (pc, pr, rc, rr)), beta)
    expected = beta * (math.log(math.exp(pc) / math.exp(rc)) - math.log(math.exp(pr) / math.exp(rr)))
    assert float(margin) == pytest.approx(expected, abs=1e-6)
    sigmoid = 1 / (1 + math.exp(-expected))
    assert math.exp(-float(loss)) == pytest.approx(sigmoid, abs=1e-6)


def test_the_reference_itself_loses_log_two_whatever_beta() -> None:
    values = torch.tensor([-3.0, -70.0])
    for beta in (0.1, 5.0):
        loss, margin = dpo_loss(values, values - 9, values, values - 9, beta)
        torch.testing.assert_close(loss, torch.full((2,), math.log(2.0)))
        assert margin.tolist() == [0.0, 0.0]


def test_descent_raises_the_chosen_and_lowers_the_rejected() -> None:
    chosen, rejected = torch.tensor([-5.0], requires_grad=True), torch.tensor([-4.0], requires_grad=True)
    reference = torch.tensor([-4.5])
    loss, margin = dpo_loss(chosen, rejected, reference, reference, 0.3)
    loss.sum().backward()
    # The gradient of Eq. 7: beta times the probability of the wrong order.
    wrong = torch.sigmoid(-margin.detach())
    torch.testing.assert_close(chosen.grad, -0.3 * wrong)
    torch.testing.assert_close(rejected.grad, 0.3 * wrong)


def test_huge_margins_stay_finite() -> None:
    zero = torch.zeros(2)
    loss, _ = dpo_loss(torch.tensor([-1e4, 1e4]), zero, zero, zero, 1.0)
    assert loss.tolist() == [1e4, 0.0]
