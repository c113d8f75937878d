"""The variational preference model: what its posterior and its predictions may and may not depend on."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedalign.errors import UserError
from fedalign.models.body import FeatureBody
from fedalign.models.variational import VariationalReward, VariationalSpec

FEATURES, LATENT = 6, 4
DEFAULT = VariationalSpec(
    body=FeatureBody(width=5, layers=1, dropout=0.0),
    latent=LATENT,
    width=7,
    aggregation="mean",
    head="reward",
    decoder="bilinear",
    base_dropout=0.0,
    max_log_variance=None,
    evidence=False,
)
ENCODERS: list[dict[str, Any]] = [
    {"aggregation": "mean"},
    {"aggregation": "attention"},
    {"aggregation": "mean", "evidence": True},
    {"aggregation": "attention", "evidence": True},
    {"head": "selector"},
]
DECODERS: list[dict[str, Any]] = [
    {"head": head, "decoder": decoder} for head in ("reward", "selector") for decoder in ("bilinear", "mlp", "additive")
]


def model(**changes: Any) -> VariationalReward:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return dataclasses.replace(DEFAULT, **changes).build(FEATURES)


def pairs(seed: int, *shape: int) -> tuple[Tensor, Tensor]:
    first, second = torch.randn(2, *shape, FEATURES, generator=torch.Generator().manual_seed(seed))
    return first, second


def outcomes(seed: int, *shape: int) -> Tensor:
    """A preference, its opposite or a tie for each pair."""
    return torch.randint(3, shape, generator=torch.Generator().manual_seed(seed)) / 2


def close(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> None:
    for mine, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("changes", ENCODERS, ids=str)
@given(seed=st.integers(0, 999), size=st.integers(1, 6))
def test_the_posterior_knows_no_order(changes: dict[str, Any], seed: int, size: int) -> None:
    network = model(**changes)
    (first, second), preferred = pairs(seed, 2, size), outcomes(seed, 2, size)
    found = network.posterior(first, second, preferred)
    assert found[0].shape == found[1].shape == (2, LATENT)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    close(network.posterior(first[:, order], second[:, order], preferred[:, order]), found)
    turn = torch.rand(2, size, generator=torch.Generator().manual_seed(seed + 1)) < 0.5
    mask = turn[..., None]
    turned = torch.where(mask, second, first), torch.where(mask, first, second)
    close(network.posterior(*turned, torch.where(turn, 1 - preferred, preferred)), found)


@pytest.mark.parametrize("changes", ENCODERS, ids=str)
def test_the_posterior_depends_on_who_was_preferred_and_on_the_responses(changes: dict[str, Any]) -> None:
    network = model(**changes)
    first, second = pairs(0, 1, 5)
    ones = torch.ones(1, 5)
    mean, _ = network.posterior(first, second, ones)
    for other in (
        network.posterior(first, second, 1 - ones),
        network.posterior(first, second, ones / 2),
        network.posterior(second, first, ones),
    ):
        assert float((other[0] - mean).detach().abs().max()) > 1e-3


@pytest.mark.parametrize("changes", ENCODERS, ids=str)
def test_episodes_do_not_see_each_other(changes: dict[str, Any]) -> None:
    network = model(**changes)
    (first, second), preferred = pairs(0, 3, 4), outcomes(0, 3, 4)
    together = network.posterior(first, second, preferred)
    alone = [network.posterior(first[i : i + 1], second[i : i + 1], preferred[i : i + 1]) for i in range(3)]
    close(together, (torch.cat([mean for mean, _ in alone]), torch.cat([spread for _, spread in alone])))


def test_repeating_a_context_changes_nothing_under_the_mean() -> None:
    network = model(evidence=True)
    (first, second), preferred = pairs(0, 1, 3), outcomes(0, 1, 3)
    twice = network.posterior(first.repeat(1, 2, 1), second.repeat(1, 2, 1), preferred.repeat(1, 2))
    close(twice, network.posterior(first, second, preferred))


def test_the_variance_is_bounded_where_asked() -> None:
    (first, second), preferred = pairs(0, 50, 3), outcomes(0, 50, 3)
    free = model().posterior(first, second, preferred)
    bound = float(free[1].detach().mean())
    capped = model(max_log_variance=bound).posterior(first, second, preferred)
    assert torch.equal(capped[0], free[0])
    assert torch.equal(capped[1], free[1].clamp(max=bound))
    assert not torch.equal(capped[1], free[1])


@pytest.mark.parametrize("head", ["reward", "selector"])
def test_without_a_latent_the_bilinear_decoder_is_the_plain_model(head: str) -> None:
    network = model(head=head)
    first, second = pairs(0, 2, 3)
    hidden = network.body(first), network.body(second)
    if head == "reward":
        plain = (network.base(hidden[0]) - network.base(hidden[1])).squeeze(-1)
    else:
        plain = network.base(torch.cat(hidden, -1)).squeeze(-1)
    assert torch.equal(network.logits(first, second, torch.zeros(2, LATENT)), plain)
    assert float((network.logits(first, second, torch.ones(2, LATENT)) - plain).detach().abs().min()) > 1e-5


def test_the_bilinear_decoder_is_linear_in_the_latent() -> None:
    network = model()
    first, second = pairs(0, 2, 3)
    z, other = torch.randn(2, 2, LATENT, generator=torch.Generator().manual_seed(1))
    plain = network.logits(first, second, torch.zeros(2, LATENT))
    both = network.logits(first, second, z + other) - plain
    apart = network.logits(first, second, z) + network.logits(first, second, other) - 2 * plain
    torch.testing.assert_close(both, apart, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("decoder", ["bilinear", "mlp"])
def test_swapping_the_responses_negates_a_difference_of_rewards(decoder: str) -> None:
    network = model(decoder=decoder)
    first, second = pairs(0, 2, 3)
    z = torch.randn(2, LATENT, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(network.logits(first, second, z), -network.logits(second, first, z))


@pytest.mark.parametrize("head", ["reward", "selector"])
def test_the_additive_decoder_knows_places_but_not_responses(head: str) -> None:
    """FedVPA-GP, Eq. 11: what the latent adds is the same for all pairs, so in both orders it cancels."""
    network = model(head=head, decoder="additive")
    first, second = pairs(0, 2, 5)
    z, other = torch.randn(2, 2, LATENT, generator=torch.Generator().manual_seed(1))
    added = network.logits(first, second, z) - network.logits(first, second, other)
    assert float(added.detach().abs().min()) > 1e-4
    torch.testing.assert_close(added, added[:, :1].expand_as(added), rtol=0, atol=1e-5)
    both = [network.logits(first, second, each) - network.logits(second, first, each) for each in (z, other)]
    torch.testing.assert_close(*both, rtol=0, atol=1e-5)


@pytest.mark.parametrize("changes", DECODERS, ids=str)
def test_a_factor_of_zero_leaves_the_part_without_latent_out(changes: dict[str, Any]) -> None:
    network = model(**changes)
    first, second = pairs(0, 2, 3)
    z = torch.randn(2, LATENT, generator=torch.Generator().manual_seed(1))
    whole, ones = network.logits(first, second, z), network.logits(first, second, z, torch.ones(2, 3))
    bare = network.logits(first, second, z, torch.zeros(2, 3))
    assert torch.equal(whole, ones)
    with torch.no_grad():
        for parameter in network.base.parameters():
            parameter.zero_()
    torch.testing.assert_close(network.logits(first, second, z), bare)
    assert float((whole - bare).detach().abs().min()) > 1e-5


@pytest.mark.parametrize("changes", [*DECODERS, {"evidence": True}, {"aggregation": "attention"}], ids=str)
def test_every_weight_is_used(changes: dict[str, Any]) -> None:
    network = model(**changes)
    (first, second), preferred = pairs(0, 2, 3), torch.ones(2, 3)
    mean, log_variance = network.posterior(first, second, preferred)
    (network.logits(first, second, mean).square().sum() + log_variance.square().sum()).backward()
    # The last bias of a score, and of a feature, cancels in the difference of two responses.
    idle = {name for name, p in network.named_parameters() if p.grad is None or float(p.grad.abs().max()) < 1e-9}
    allowed = {"base.2.bias", "taste.2.bias", "joint.2.bias"} if changes.get("head") != "selector" else set()
    # A shift of all attention scores of a query cancels in the softmax.
    assert idle <= allowed | {"encoder.key.bias"}


def test_evidence_is_the_mean_taste_of_what_was_chosen_over_what_was_not() -> None:
    plain, told = model(), model(evidence=True)
    told.load_state_dict({**told.state_dict(), **plain.state_dict()})
    (chosen, rejected), preferred = pairs(0, 2, 3), torch.ones(2, 3)
    said = (told.taste(told.body(chosen)) - told.taste(told.body(rejected))).mean(1)
    without, with_evidence = (m.posterior(chosen, rejected, preferred) for m in (plain, told))
    torch.testing.assert_close(with_evidence[0] - without[0], told.gain * said)
    assert torch.equal(with_evidence[1], without[1])
    with torch.no_grad():
        told.gain.zero_()
    close(told.posterior(chosen, rejected, preferred), without)


@pytest.mark.parametrize("changes", [{"decoder": "mlp"}, {"decoder": "additive"}, {"head": "selector"}], ids=str)
def test_evidence_needs_a_taste_to_speak_of(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"model\.evidence=true needs model\.decoder=bilinear and model\.head=reward"):
        dataclasses.replace(DEFAULT, evidence=True, **changes)
