"""A node's side of a run, from the configuration that travels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import pytest

from fedalign.config import parse, resolve, to_json
from fedalign.data.federated import ClientInfo, Role
from fedalign.errors import UserError
from fedalign.site import open_site, setting
from tests.tiny import TINY, use_cache
from tests.tiny_alignment import ALIGNMENT
from tests.tiny_policy import PAIRS, language_model_of


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_cache(tmp_path, monkeypatch)


def config(*overrides: str) -> str:
    return to_json(resolve([*TINY, *overrides]))


def test_a_site_is_built_from_what_travels() -> None:
    site = open_site(config("seed=3", "engine.threads=2"), {})
    assert (site.seed, site.threads) == (3, 2)
    assert [phase.name for phase in site.phases] == ["question_prior", "gpo"]
    names = [f"group-{number:02d}" for number in range(1, 6)]
    roles = [Role.TRAIN] * 3 + [Role.UNSEEN] * 2
    assert list(site.data.clients) == [ClientInfo(name, role) for name, role in zip(names, roles, strict=True)]


def test_asked_again_for_the_same_run_it_is_the_same_site() -> None:
    first = open_site(config(), {})
    assert open_site(config(), {}) is first
    assert open_site(config("output=elsewhere", "logger=tensorboard"), {}) is first
    assert open_site(config("seed=1"), {}) is not first


def test_sites_agree_on_everything_without_talking() -> None:
    one, other = (open_site(config(f"federation.rounds={rounds}"), {}) for rounds in (1, 2))
    group = one.data.shard("group-01").groups[0]
    assert group.question_ids == other.data.shard("group-01").groups[0].question_ids
    assert group.train.tolist() == other.data.shard("group-01").groups[0].train.tolist()


def survey(path: Path, groups: list[str]) -> Path:
    rows = [
        {"group": name, "question": f"How about {topic}?", "options": ["yes", "no"], "distribution": [0.25, 0.75]}
        for name in groups
        for topic in ("tea", "milk", "rain", "snow", "bread", "jam", "trains", "boats", "hills", "lakes", "kites")
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_a_node_reads_its_own_data(tmp_path: Path) -> None:
    path = survey(tmp_path / "own.jsonl", ["Wales"])
    own = config("partition.unseen=null")
    site = open_site(own, {"data-path": str(path)})
    assert [client.name for client in site.data.clients] == ["Wales"]
    assert [client.name for client in open_site(own, {}).data.clients] != ["Wales"]


ALIGNED = ("method=dprlhf", *ALIGNMENT, "partition=silos", "partition.clients=2")


@pytest.mark.parametrize("overrides", [TINY, ("method=fedvpa", *PAIRS), ALIGNED], ids=["survey", "pairs", "texts"])
def test_a_prefix_parts_nodes_whose_clients_have_the_same_names(
    overrides: Sequence[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = f"model.model={language_model_of(tmp_path_factory.getbasetemp())}"
    content = to_json(resolve([*overrides, *([model] if overrides is ALIGNED else [])]))
    plain, north, south = (
        open_site(content, node).data for node in ({}, {"client-prefix": "north/"}, {"client-prefix": "south/"})
    )
    names = {client.name for client in plain.clients}
    assert {client.name for client in north.clients} == {f"north/{name}" for name in names}
    assert not {client.name for client in north.clients} & {client.name for client in south.clients}
    for client, own in zip(plain.clients, north.clients, strict=True):
        assert (own.role, own.stages) == (client.role, client.stages)
        shard, renamed = plain.shard(client.name), north.shard(own.name)
        assert renamed.client == own.name
        kept = [field.name for field in fields(shard) if field.name != "client"]
        assert all(repr(getattr(renamed, name)) == repr(getattr(shard, name)) for name in kept)
    assert north.dropped == plain.dropped


def test_a_path_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"data\.path=nowhere/own\.jsonl: no such file"):
        open_site(config(), {"data-path": "nowhere/own.jsonl"})


def test_a_configuration_that_cannot_be_built_is_refused() -> None:
    broken = json.loads(config())
    broken["data"]["_target_"] = "os.system"
    with pytest.raises(UserError, match="is not a class of fedalign"):
        open_site(json.dumps(broken), {})


def test_a_method_is_told_rounds_features_and_model() -> None:
    run = parse(resolve([*TINY, "federation.rounds=9", "encoder.size=48"]))
    told = setting(run)
    assert (told.rounds, told.features, told.model) == (9, 48, run.model)


@pytest.mark.parametrize(
    ("chosen", "private"), [("none", False), ("secure_sum", False), ("central", True), ("local_user", True)]
)
def test_a_method_is_told_whether_the_run_is_private(chosen: str, private: bool) -> None:
    """A secure sum alone promises no differential privacy."""
    run = parse(resolve([*TINY, f"privacy={chosen}"]))
    assert setting(run).private is private
