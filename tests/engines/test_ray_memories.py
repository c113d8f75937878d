"""What clients keep, by reference: only what was told counts, key by key."""

from __future__ import annotations

import pytest
from flwr.app import Context, RecordDict
from torch import zeros

from fedalign.engines.ray_memories import Changes, Memories, client_of
from fedalign.federation.site import store_memory


@pytest.mark.parametrize("client", ["ada", "a/b", "memory/x", "secure/y", ""])
def test_a_key_names_its_client(client: str) -> None:
    context = Context(1, 1, {}, RecordDict(), {})
    store_memory(context, "phase", client, {"w": zeros(1)})
    (key,) = context.state
    assert client_of(key) == client
    assert client_of(f"secure/{client}") == client


def test_the_newest_object_of_every_key_counts() -> None:
    memories = Memories()
    memories.commit(
        ["ada", "bob"], [Changes(("memory/p/ada", "secure/ada")), Changes(("memory/p/bob",))], ["one", "two"]
    )
    memories.commit(["ada"], [Changes(("memory/p/ada",), ("secure/ada",))], ["three"])
    assert memories.of(["bob", "ada", "cid"]) == (["two", "three"], [("memory/p/bob",), ("memory/p/ada",)])
    memories.commit(["ada"], [Changes(("memory/q/ada",))], ["four"])
    assert memories.of(["ada"]) == (["three", "four"], [("memory/p/ada",), ("memory/q/ada",)])


def test_keys_of_one_object_are_wanted_together() -> None:
    memories, same = Memories(), object()
    memories.commit(["ada"], [Changes(("memory/p/ada", "secure/ada"))], [same])
    assert memories.of(["ada"]) == ([same], [("memory/p/ada", "secure/ada")])


def test_a_client_that_changed_nothing_holds_no_object() -> None:
    memories = Memories()
    memories.commit(["ada"], [Changes()], ["empty"])
    memories.commit(["bob"], [Changes(("secure/bob",))], ["one"])
    memories.commit(["bob"], [Changes((), ("secure/bob",))], ["two"])
    assert memories.items() == []


def test_restored_records_replace_all_and_forgotten_ones_are_gone() -> None:
    memories = Memories()
    memories.commit(["ada"], [Changes(("secure/ada",))], ["old"])
    memories.replace({"memory/p/bob": "b", "memory/p/cid": "c", "memory/q/cid": "d"})
    assert memories.items() == [("memory/p/bob", "b"), ("memory/p/cid", "c"), ("memory/q/cid", "d")]
    memories.forget(["cid", "nobody"])
    assert memories.items() == [("memory/p/bob", "b")]
