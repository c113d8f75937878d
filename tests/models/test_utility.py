"""Utility networks: one number a response, whatever stands beside it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fedalign.errors import UserError
from fedalign.models.body import FeatureBody
from fedalign.models.reward import RewardSpec
from fedalign.models.utility import LinearUtility, UtilitySpec

REWARD = RewardSpec(FeatureBody(width=5, layers=2, dropout=0.0), width=4, head="reward")


def build(spec: UtilitySpec, features: int = 6, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return spec.build_utility(features)


@pytest.mark.parametrize("spec", [LinearUtility(1.0), REWARD])
@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
def test_every_response_has_one_utility_that_depends_on_it_alone(spec: UtilitySpec, shape: tuple[int, ...]) -> None:
    network = build(spec)
    responses = torch.randn(*shape, 6)
    found: Tensor = network(responses)
    assert found.shape == shape
    alone = torch.stack([network(response) for response in responses.reshape(-1, 6)])
    torch.testing.assert_close(found.reshape(-1), alone)
    assert len(alone.unique()) == len(alone)


@pytest.mark.parametrize("spec", [LinearUtility(1.0), REWARD])
def test_every_parameter_changes_differences_of_utilities(spec: UtilitySpec) -> None:
    network = build(spec)
    first, second = torch.randn(2, 9, 6)
    (network(first) - network(second)).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 1e-7, name


def test_a_linear_utility_is_a_product_with_one_vector() -> None:
    network = build(LinearUtility(1.0))
    (weight,) = network.parameters()
    responses = torch.randn(7, 6)
    torch.testing.assert_close(network(responses), responses @ weight[0])


def test_first_utilities_have_the_size_asked_for() -> None:
    features = 10_000
    network = build(LinearUtility(3.0), features)
    (weight,) = network.parameters()
    assert float(weight.detach().std()) * math.sqrt(features) == pytest.approx(3.0, rel=0.03)
    assert not torch.equal(weight, next(build(LinearUtility(3.0), features, seed=1).parameters()))


def test_a_selector_has_no_utilities() -> None:
    spec = RewardSpec(REWARD.body, width=4, head="selector")
    with pytest.raises(UserError, match=r"model\.head=selector .* set model\.head=reward"):
        spec.build_utility(6)
