"""Pairs laid out and encoded: a shard holds its people's judgments, the chosen response first, and nothing more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedalign.data.federated import Role
from fedalign.data.pair_data import PairData
from fedalign.data.pairs import Judgments
from fedalign.data.progress import silent
from fedalign.errors import UserError
from fedalign.rng import Streams

Make = Callable[..., Any]
Write = Callable[[str, Sequence[dict[str, Any]]], Path]

WORLD: dict[str, Any] = {"annotators": 6, "train_judgments": 12, "test_judgments": 3}


def federate(make: Make, tmp_path: Path, data: str = "synthetic_pairs", **changes: Any) -> PairData:
    world = make(f"data/{data}", **{**(WORLD if data == "synthetic_pairs" else {}), **changes.pop("data_keys", {})})
    partition = make("partition/by_annotator", **changes)
    made: PairData = world.federate(partition, make("encoder/hashing"), Streams(0), tmp_path, silent)
    return made


def test_a_shard_holds_what_its_person_judged(make: Make, tmp_path: Path) -> None:
    data = federate(make, tmp_path, unseen=2)
    pairs = make("data/synthetic_pairs", **WORLD).load(Streams(0)).pairs
    encoder = make("encoder/hashing")
    assert [client.role for client in data.clients] == [Role.TRAIN] * 4 + [Role.UNSEEN] * 2
    for client in data.clients:
        shard = data.shard(client.name)
        assert (shard.client, shard.role) == (client.name, client.role)
        (own,) = shard.people
        mine = [pair for pair in pairs if pair.annotator == client.name]
        assert (own.person, own.group) == (client.name, mine[0].group)
        assert own.prompts == tuple(pair.prompt for pair in mine)
        assert own.categories == tuple(pair.group for pair in mine)
        texts = [f"{pair.prompt} {text}" for pair in mine for text in (pair.chosen, pair.rejected)]
        vectors = encoder.encode(texts, lambda _: None).reshape(len(mine), 2, -1)
        np.testing.assert_array_equal(own.features.numpy(), vectors)
        assert own.lengths.tolist() == [[len(pair.chosen), len(pair.rejected)] for pair in mine]
        assert own.conflict.tolist() == [pair.conflict for pair in mine]
        assert own.tie.dtype == own.conflict.dtype == torch.bool and not own.tie.any()
        assert own.train.tolist() == list(range(12)) and own.test.tolist() == [12, 13, 14]
    assert data.dropped == {}


def test_a_shard_is_made_once(make: Make, tmp_path: Path) -> None:
    data = federate(make, tmp_path)
    name = data.clients[0].name
    assert data.shard(name) is data.shard(name)


def test_a_pooled_client_holds_the_same_people(make: Make, tmp_path: Path) -> None:
    apart, pooled = federate(make, tmp_path, unseen=2), federate(make, tmp_path, unseen=2, pooled=True)
    assert [client.role for client in pooled.clients] == [Role.TRAIN, Role.UNSEEN, Role.UNSEEN]
    assert pooled.clients[0].name == "pooled"
    for one, other in zip(_people(apart), _people(pooled), strict=True):
        assert one.person == other.person and torch.equal(one.features, other.features)
        assert torch.equal(one.train, other.train) and torch.equal(one.test, other.test)


def test_only_what_somebody_holds_is_encoded(make: Make, tmp_path: Path) -> None:
    data = federate(make, tmp_path, clients=2, max_train=9, max_test=1)
    assert len(data.vectors) == 2 * 10


def test_the_encoder_reads_the_end_of_a_prompt(make: Make, write: Write, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{'word ' * 50}{end}", "chosen": "a", "rejected": "b", "annotator": "x", "split": split}
        for end, split in (("one", "train"), ("two", "test"))
    ]
    path = str(write("p.jsonl", rows))
    near, far = (
        _people(federate(make, tmp_path, "pairs_file", min_train=1, data_keys={"path": path, "prompt_tail": tail}))[0]
        for tail in (3, 100)
    )
    expected = make("encoder/hashing").encode(["one a", "one b"], lambda _: None)
    np.testing.assert_array_equal(near.features[0].numpy(), expected)
    assert not torch.equal(near.features, far.features)
    assert near.prompts == far.prompts == tuple(row["prompt"] for row in rows)


def test_ties_and_categories_reach_the_shard_and_counts_are_merged(make: Make, write: Write, tmp_path: Path) -> None:
    def row(i: int, **more: Any) -> dict[str, Any]:
        return {"prompt": f"p{i}", "chosen": "a", "rejected": "b", "annotator": "x", "split": "train", **more}

    rows = [row(0), row(1, tie=True, group="g"), row(1, rejected="a"), row(2, split="test"), row(3, annotator="y")]
    path = str(write("p.jsonl", rows))
    data = federate(make, tmp_path, "pairs_file", min_train=2, small="drop", data_keys={"path": path})
    (own,) = _people(data)
    assert own.tie.tolist() == [False, True, False] and own.categories == ("all", "g", "all")
    assert own.train.tolist() == [0, 1] and own.test.tolist() == [2]
    assert data.dropped == {"responses_equal": 1, "annotator_small": 1}


def test_vectors_come_from_the_cache(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = federate(make, tmp_path)
    encoder = type(make("encoder/hashing"))
    monkeypatch.setattr(encoder, "encode", lambda *_: pytest.fail("nothing is left to encode"))
    again = federate(make, tmp_path)
    assert all(torch.equal(a.features, b.features) for a, b in zip(_people(first), _people(again), strict=True))


def test_one_encoded_pair_serves_all_who_judged_it(make: Make, write: Write, tmp_path: Path) -> None:
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b", "annotator": name, "split": "train"} for name in ("x", "y")]
    path = str(write("p.jsonl", rows))
    data = federate(make, tmp_path, "pairs_file", min_train=1, min_test=0, data_keys={"path": path})
    assert len(data.vectors) == 1 and len(_people(data)) == 2


def test_what_the_partition_refuses_is_refused(make: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="annotator 'annotator-001' has 12 training"):
        federate(make, tmp_path, min_train=13)


def _people(data: PairData) -> list[Judgments]:
    return [person for client in data.clients for person in data.shard(client.name).people]
