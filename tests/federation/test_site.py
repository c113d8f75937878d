"""A client's memory: kept in the node's own state, saved and restored with the checkpoint it belongs to."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from flwr.app import Context
from torch import Tensor

from fedalign.federation.site import forget_memory, load_memory, restore_memories, save_memories, store_memory

from .toy import node

MEMORY = {
    "moment": torch.randn(3, 2, generator=torch.Generator().manual_seed(0)),
    "step": torch.tensor(4.0),
    "half": torch.ones(2, dtype=torch.bfloat16),
    "turned": torch.arange(6).view(2, 3).T,
}
NAMES = ["ada", "a/b", "Côte d'Ivoire", "..", "x" * 200]


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert other[name].dtype == tensor.dtype
        assert torch.equal(other[name], tensor)


def filled(**node_config: object) -> Context:
    context = node(1, **node_config)
    for name in NAMES:
        store_memory(context, "gpo", name, MEMORY)
    return context


def test_before_the_first_round_there_is_none() -> None:
    assert load_memory(node(1), "gpo", "ada") == {}


def test_it_is_kept_by_phase_and_client() -> None:
    context = node(1)
    store_memory(context, "gpo", "ada", MEMORY)
    assert_same(load_memory(context, "gpo", "ada"), MEMORY)
    assert load_memory(context, "gpo", "bob") == {}
    assert load_memory(context, "dpo", "ada") == {}


def test_what_is_forgotten_is_gone_and_nothing_else_is() -> None:
    context = filled()
    forget_memory(context, "gpo", "ada")
    forget_memory(context, "gpo", "nobody")
    assert load_memory(context, "gpo", "ada") == {}
    assert_same(load_memory(context, "gpo", "a/b"), MEMORY)


def test_a_client_that_remembers_nothing_takes_no_room() -> None:
    context = node(1)
    store_memory(context, "gpo", "ada", {})
    assert not context.state.array_records


def test_saved_and_restored(tmp_path: Path) -> None:
    save_memories(filled(), tmp_path, "1-5")
    fresh = node(9)
    restore_memories(fresh, tmp_path, "1-5")
    for name in NAMES:
        assert_same(load_memory(fresh, "gpo", name), MEMORY)


def test_restoring_replaces_what_was_there(tmp_path: Path) -> None:
    save_memories(filled(), tmp_path, "1-5")
    later = node(1)
    store_memory(later, "gpo", "ada", {"step": torch.tensor(9.0)})
    store_memory(later, "gpo", "newcomer", MEMORY)
    restore_memories(later, tmp_path, "1-5")
    assert_same(load_memory(later, "gpo", "ada"), MEMORY)
    assert load_memory(later, "gpo", "newcomer") == {}


def test_nodes_share_a_directory_and_keep_apart(tmp_path: Path) -> None:
    first, second = node(1, **{"partition-id": 0}), node(2, **{"partition-id": 1})
    store_memory(first, "gpo", "ada", {"step": torch.tensor(1.0)})
    store_memory(second, "gpo", "bob", {"step": torch.tensor(2.0)})
    for context in (first, second):
        save_memories(context, tmp_path, "0-1")
    # Another run, in which Flower has drawn other ids.
    again = node(77, **{"partition-id": 1})
    restore_memories(again, tmp_path, "0-1")
    assert load_memory(again, "gpo", "ada") == {}
    assert_same(load_memory(again, "gpo", "bob"), {"step": torch.tensor(2.0)})


def test_two_checkpoints_are_kept(tmp_path: Path) -> None:
    context = filled()
    for place, tag in enumerate(["0-1", "1-10", "1-9"]):
        save_memories(context, tmp_path, tag)
        os.utime(tmp_path / tag, (place, place))
    save_memories(context, tmp_path, "1-20")
    assert {path.name for path in tmp_path.iterdir()} == {"1-9", "1-20"}
