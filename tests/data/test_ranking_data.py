"""Rankings laid out and encoded: a shard holds its annotators' judgments, padded, and nothing more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedalign.data.federated import ClientInfo
from fedalign.data.progress import silent
from fedalign.data.ranking_data import RankingData
from fedalign.data.rankings import Menu, Ranking, RankingSet, RankingSource, Role
from fedalign.data.schema import Encoder
from fedalign.rng import Streams

Make = Callable[..., Any]

RANKINGS = [
    Ranking("one", ("a", "b"), (0, 1), "train", "g", "ann"),
    Ranking("two", ("c", "a", "d", "b"), (2, 0, 1, 2), "test", "g", "ben"),
    Ranking("three", ("a", "b", "c"), (1, 0, 1), "train", "h", "ben"),
    Ranking("four", ("d", "b"), (1, 0), "test", "h", "ann"),
    Ranking("five", ("d", "b", "a"), (1, 0, 2), "train", "h", "cat"),
]
SET = RankingSet(
    RANKINGS,
    {"rule": 2},
    types={"ann": "x", "cat": "y"},
    probe=[Menu("probe", ("a", "b", "c")), Menu("other", ("d", "e"))],
    answers={"ann": [(2, 0, 1), (0, 0)], "cat": [(0, 1, 2), (1, 0)]},
)


@dataclass(frozen=True)
class Given(RankingSource):
    """A set of rankings, with vectors of its own or none."""

    rankings: RankingSet
    own: bool = False
    prompt_tail: int = 2

    def load(self, streams: Streams) -> RankingSet:
        return self.rankings

    def vectors(self, rankings: Sequence[Ranking]) -> Sequence[torch.Tensor] | None:
        if not self.own:
            return None
        return [torch.full((len(r.responses), 3), float(RANKINGS.index(r) + 1)) for r in rankings]


class Refusing:
    """An encoder that may not be asked."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)


def federate(make: Make, path: Path, source: RankingSource, encoder: Any = None, **changes: Any) -> RankingData:
    layout = changes.pop("layout", "annotators")
    partition = make(f"partition/{layout}", **{"min_train": 1, "min_test": 0, **changes})
    encoder = make("encoder/hashing") if encoder is None else encoder
    made = source.federate(partition, encoder, Streams(0), path, silent)
    assert isinstance(made, RankingData)
    return made


@pytest.fixture
def pooled(make: Make, tmp_path: Path) -> RankingData:
    return federate(make, tmp_path, Given(SET), layout="annotator_silos", silos=1)


def test_a_shard_holds_what_its_annotators_judged(make: Make, pooled: RankingData) -> None:
    assert pooled.clients == [ClientInfo("silo-1", Role.TRAIN)] and pooled.dropped == {"rule": 2}
    shard = pooled.shard("silo-1")
    assert shard is pooled.shard("silo-1")
    assert (shard.client, shard.role) == ("silo-1", Role.TRAIN)
    assert shard.people == ("ann", "ben", "cat") and shard.types == ("x", None, "y")
    order = [RANKINGS[i] for i in (0, 3, 1, 2, 4)]
    assert shard.owner.tolist() == [0, 0, 1, 1, 2] and shard.owner.dtype == torch.int64
    assert shard.prompts == tuple(r.prompt for r in order)
    assert shard.responses == tuple(r.responses for r in order)
    assert shard.groups == ("g", "h", "g", "h", "h")
    assert shard.train.tolist() == [0, 3, 4] and shard.test.tolist() == [1, 2]
    assert shard.tiers.dtype == shard.train.dtype == shard.test.dtype == torch.int64
    assert shard.tiers.tolist() == [
        [0, 1, -1, -1],
        [1, 0, -1, -1],
        [2, 0, 1, 2],
        [1, 0, 1, -1],
        [1, 0, 2, -1],
    ]


def test_features_are_of_each_prompts_end_and_response(make: Make, pooled: RankingData) -> None:
    shard, encoder = pooled.shard("silo-1"), make("encoder/hashing")
    assert shard.features.shape == (5, 4, encoder.dim) and shard.features.dtype == torch.float32
    for vectors, prompt, responses in zip(shard.features, shard.prompts, shard.responses, strict=True):
        expected = encoder.encode([f"{prompt[-2:]} {response}" for response in responses], lambda _: None)
        np.testing.assert_array_equal(vectors[: len(responses)].numpy(), expected)
        assert not vectors[len(responses) :].any()


def test_the_probe_is_padded(pooled: RankingData) -> None:
    probe = pooled.shard("silo-1").probe
    assert probe.dtype == torch.int64
    assert probe.tolist() == [[[2, 0, 1], [0, 0, -1]], [[-1] * 3] * 2, [[0, 1, 2], [1, 0, -1]]]


def test_a_shard_is_as_wide_as_its_own_menus(make: Make, tmp_path: Path) -> None:
    data = federate(make, tmp_path, Given(SET))
    assert [data.shard(name).tiers.shape for name in ("ann", "ben", "cat")] == [(2, 2), (2, 4), (1, 3)]
    assert data.shard("ann").probe.tolist() == [[[2, 0, 1], [0, 0, -1]]]
    assert data.shard("cat").test.tolist() == [] and data.shard("cat").test.dtype == torch.int64


def test_clients_hold_what_a_silo_holds(make: Make, tmp_path: Path, pooled: RankingData) -> None:
    apart, whole = federate(make, tmp_path, Given(SET)), pooled.shard("silo-1")
    for place, name in enumerate(whole.people):
        shard, own = apart.shard(name), whole.owner == place
        width = shard.tiers.shape[1]
        assert torch.equal(shard.features, whole.features[own][:, :width])
        assert torch.equal(shard.tiers, whole.tiers[own][:, :width]) and not shard.owner.any()


def test_without_a_probe_nobody_answered(make: Make, tmp_path: Path) -> None:
    data = federate(make, tmp_path, Given(RankingSet(RANKINGS)))
    assert data.shard("ann").probe.shape == (1, 0, 0) and data.shard("ann").probe.dtype == torch.int64


def test_a_source_with_vectors_needs_no_encoder(make: Make, tmp_path: Path) -> None:
    data = federate(make, tmp_path, Given(SET, own=True), Refusing(), clients=1, unseen=1)
    assert [client.role for client in data.clients] == [Role.TRAIN, Role.UNSEEN]
    for client in data.clients:
        own = [i + 1.0 for i, ranking in enumerate(RANKINGS) if ranking.annotator == client.name]
        shard = data.shard(client.name)
        for vectors, tiers, number in zip(shard.features, shard.tiers, own, strict=True):
            assert torch.equal(vectors, number * (tiers >= 0)[:, None].expand(-1, 3).float())


def test_only_what_somebody_holds_is_encoded(make: Make, tmp_path: Path) -> None:
    class Counting:
        """The hashing encoder, which notes what it is asked for."""

        def __init__(self, inner: Encoder) -> None:
            self.inner, self.asked = inner, []  # type: tuple[Encoder, list[str]]

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def encode(self, texts: Sequence[str], progress: Callable[[int], None]) -> Any:
            self.asked += texts
            return self.inner.encode(texts, progress)

    encoder = Counting(make("encoder/hashing"))
    data = federate(make, tmp_path, Given(SET, prompt_tail=9), encoder, clients=1)
    name = data.clients[0].name
    held = {f"{r.prompt} {text}" for r in RANKINGS if r.annotator == name for text in r.responses}
    assert set(encoder.asked) == held and len(encoder.asked) == len(held)
