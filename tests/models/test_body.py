"""The small network on frozen vectors: shape, scale of its input, dropout, and refused settings."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fedalign.build import build
from fedalign.errors import UserError
from fedalign.models.body import Body, BodySpec, FeatureBody


def body(features: int = 6, layers: int = 2, dropout: float = 0.0) -> Body:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return FeatureBody(width=5, layers=layers, dropout=dropout).build(features)


@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (2, 3, 4)])
def test_any_leading_shape_gives_one_hidden_vector_each(shape: tuple[int, ...]) -> None:
    network = body()
    vectors = torch.randn(*shape, 6)
    hidden = network(vectors)
    assert hidden.shape == (*shape, network.dim)
    torch.testing.assert_close(hidden.reshape(-1, 5)[-1], network(vectors.reshape(-1, 6)[-1]))


def test_the_network_is_the_layers_that_were_asked_for_on_entries_of_size_one() -> None:
    one, three = body(layers=1), body(layers=3)
    assert sum(isinstance(m, torch.nn.Linear) for m in three.modules()) == 3
    assert sum(isinstance(m, torch.nn.GELU) for m in three.modules()) == 2
    (linear,) = (m for m in one.modules() if isinstance(m, torch.nn.Linear))
    vector = torch.randn(6)
    torch.testing.assert_close(one(vector), math.sqrt(6) * linear.weight @ vector + linear.bias)


def test_dropout_leaves_out_inputs_in_training_alone() -> None:
    network, vectors = body(dropout=0.5), torch.ones(64, 6)
    network.eval()
    still = network(vectors).detach()
    torch.testing.assert_close(still, still[:1].expand_as(still))
    network.train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert len((10 * network(vectors).detach()).round().unique(dim=0)) > 10


@pytest.mark.parametrize(("key", "value"), [("width", 0), ("layers", 0), ("dropout", 1.0), ("dropout", -0.1)])
def test_settings_out_of_range_are_refused(key: str, value: Any) -> None:
    node = {"_target_": "fedalign.models.body.FeatureBody", "width": 4, "layers": 1, "dropout": 0.0, key: value}
    with pytest.raises(UserError, match=rf"model\.body\.{key}"):
        build(node, BodySpec, "model.body")
