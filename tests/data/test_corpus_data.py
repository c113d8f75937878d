"""Texts laid out: clients say what stages they serve, and what sources and partitions drop is counted together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fedalign.data.federated import ClientInfo, Kind, Role
from fedalign.data.progress import silent
from fedalign.rng import Streams

Make = Callable[..., Any]
Write = Callable[[str, Sequence[dict[str, Any]]], Path]


def test_clients_and_shards(make: Make, write: Write) -> None:
    rows = [
        {"prompt": "a", "response": "b", "user": "ann", "split": "train"},
        {"prompt": "a", "response": "c", "rejected": "d", "user": "ann", "split": "train"},
        {"prompt": "a", "response": "", "user": "ann", "split": "train"},
        {"prompt": "e", "response": "f", "user": "ben", "split": "test"},
        {"prompt": "g", "response": "h", "user": "ben", "split": "test"},
    ]
    source = make("data/texts_file", path=str(write("texts.jsonl", rows)))
    shares = {"sft": 0.5, "reward": 0.5, "rl": 0.0}
    partition = make("partition/users", shares=shares, disjoint=False, test_per_client=1)
    assert source.kind is partition.kind is Kind.CORPUS
    data = source.federate(partition, None, Streams(0), None, silent)
    assert data.clients == [
        ClientInfo("ann", Role.TRAIN, ("sft", "reward")),
        ClientInfo("test-1", Role.UNSEEN, ()),
    ]
    assert data.dropped == {"response_empty": 1, "test_left_over": 1}
    shard = data.shard("ann")
    assert [example.response for example in shard.stages["sft"]] == [" b"]
    assert [(example.response, example.rejected) for example in shard.stages["reward"]] == [(" c", " d")]
    assert len(data.shard("test-1").test) == 1
