"""Types as networks on frozen vectors."""

from __future__ import annotations

import pytest
import torch

from fedalign.errors import UserError
from fedalign.methods.type_heads import HeadTypes
from fedalign.models.utility import LinearUtility
from fedalign.rng import Streams

from .ranking_worlds import FEATURES, same, shard


def test_utilities_are_the_network_s_for_every_response() -> None:
    model, client = HeadTypes(LinearUtility(1.0), FEATURES), shard()
    model.load({"score.weight": torch.tensor([[1.0, -2.0, 0.5]])})
    index = torch.tensor([4, 0])
    expected = client.features[index] @ torch.tensor([1.0, -2.0, 0.5])
    found = model.utilities(client, index)
    torch.testing.assert_close(found.values, expected)
    assert found.values.requires_grad
    assert found.likelihood is None


def test_vectors_of_another_length_than_the_encoder_s_are_refused() -> None:
    HeadTypes(LinearUtility(1.0), FEATURES).check(shard())
    with pytest.raises(UserError, match=r"client 'ann': .* of length 3, .* length, 4; set encoder\.size=3"):
        HeadTypes(LinearUtility(1.0), FEATURES + 1).check(shard())


def test_a_fresh_type_follows_from_its_streams_alone() -> None:
    model = HeadTypes(LinearUtility(1.0), FEATURES)
    one, again, other = (model.fresh(Streams(seed)) for seed in (1, 1, 2))
    assert same(one, again)
    assert not same(one, other)
    assert list(one) == ["score.weight"]


def test_trained_parameters_are_copies_and_loading_leaves_the_state_alone() -> None:
    model = HeadTypes(LinearUtility(1.0), FEATURES)
    given = {"score.weight": torch.ones(1, FEATURES)}
    model.load(given)
    taken = model.trained()
    with torch.no_grad():
        model.network.score.weight.zero_()  # type: ignore[union-attr, operator]
    assert torch.equal(taken["score.weight"], torch.ones(1, FEATURES))
    assert torch.equal(given["score.weight"], torch.ones(1, FEATURES))
    assert not model.network.training
