"""A cache with room for tokens to come holds what the usual one holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers.cache_utils import DynamicCache

from fedalign.models.causal import CausalModel
from fedalign.models.growing_cache import GrowingLayer, with_room
from tests.language_models import random_model


def states(tokens: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, 3, 2, tokens, 4, generator=generator)
    return keys, values


def test_it_holds_what_the_usual_one_does() -> None:
    usual, growing = DynamicCache(), DynamicCache()
    for cache in (usual, growing):
        for layer in range(2):
            cache.update(*states(3, layer), layer)
    growing = with_room(growing)
    assert all(isinstance(layer, GrowingLayer) for layer in growing.layers)
    for step, new in enumerate((1, 1, 2, 1, 7, 1)):
        for layer in range(2):
            own = states(new, 10 * step + layer)
            for found, wanted in zip(growing.update(*own, layer), usual.update(*own, layer), strict=True):
                assert torch.equal(found, wanted)
        assert growing.get_seq_length() == usual.get_seq_length()


@pytest.mark.parametrize("change", ["crop", "choose", "reorder", "repeat"])
def test_what_was_changed_in_between_is_kept(change: str) -> None:
    usual, growing = DynamicCache(), DynamicCache()
    found: list[torch.Tensor] = []
    for cache in (usual, growing):
        cache.update(*states(3, 0), 0)
        if cache is growing:
            with_room(cache)
        cache.update(*states(1, 1), 0)
        if change == "crop":
            cache.crop(-2)
        elif change == "choose":
            cache.batch_select_indices(torch.tensor([0, 1]))
        elif change == "reorder":
            cache.reorder_cache(torch.tensor([2, 0, 1]))
        else:
            cache.batch_repeat_interleave(2)
        rows = len(cache.layers[0].keys)
        keys, values = (torch.cat([each, each])[:rows] for each in states(1, 2))
        found.append(cache.update(keys, values, 0)[0])
    assert torch.equal(*found)


def test_other_caches_are_left_alone() -> None:
    assert with_room(None) is None
    assert with_room("cache") == "cache"


def test_a_new_token_copies_nothing(tmp_path: Path) -> None:
    model = CausalModel(random_model("qwen2", tmp_path), "float32", "cpu")
    ids = torch.randint(20, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, _ = model.advance(ids, torch.ones_like(ids), None, False, False)
        pieces, cache, places = [], None, []
        for place in range(9):
            found, cache = model.advance(
                ids[:, place : place + 1], torch.ones_like(ids[:, : place + 1]), cache, True, True
            )
            pieces.append(found)
            places.append(cache.layers[0].keys.data_ptr())
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-5, rtol=1e-5)
    assert len(set(places)) < 7
