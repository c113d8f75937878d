"""Reward models side by side: antisymmetric where they score single responses, and each a whole network."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from fedalign.models.body import FeatureBody
from fedalign.models.reward import RewardHeads, RewardSpec

Head = Literal["reward", "selector"]


def heads(count: int = 3, head: Head = "reward") -> RewardHeads:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return RewardSpec(FeatureBody(width=5, layers=1, dropout=0.0), width=4, head=head).build(6, count)


@pytest.mark.parametrize("head", ["reward", "selector"])
@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
def test_every_head_gives_log_odds_for_every_pair(head: Head, shape: tuple[int, ...]) -> None:
    network = heads(3, head)
    first, second = torch.randn(2, *shape, 6)
    logits = network.logits(first, second)
    assert logits.shape == (3, *shape)
    alone = torch.stack([each(first, second) for each in network.heads])
    assert torch.equal(logits, alone)
    assert len(logits.reshape(3, -1)[:, 0].unique()) == 3


def test_swapping_the_responses_negates_a_difference_of_rewards() -> None:
    first, second = torch.randn(2, 9, 6)
    network = heads()
    torch.testing.assert_close(network.logits(first, second), -network.logits(second, first))
    assert float(network.logits(first, first).detach().abs().max()) == 0.0


def test_rewards_are_transitive() -> None:
    a, b, c = torch.randn(3, 9, 6)
    network = heads()
    torch.testing.assert_close(network.logits(a, b) + network.logits(b, c), network.logits(a, c))


def test_a_selector_reads_both_responses_together() -> None:
    first, second = torch.randn(2, 9, 6)
    network = heads(head="selector")
    assert float((network.logits(first, second) + network.logits(second, first)).detach().abs().max()) > 1e-3


def test_heads_share_no_weight() -> None:
    network = heads()
    network.logits(torch.randn(4, 6), torch.randn(4, 6))[1].sum().backward()
    touched = {name.split(".")[1] for name, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    assert touched == {"1"}
    sizes = {len(list(head.parameters())) for head in network.heads}
    assert sizes == {6}
