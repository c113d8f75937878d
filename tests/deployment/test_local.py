"""A federation on this machine before its processes are started, and what is told of its end."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from fedalign.deployment.local import prepare_local, read_result
from fedalign.errors import RunFailed, UserError
from fedalign.report.run_directory import RunDirectory
from fedalign.report.summary import Summary, Timing, Traffic
from tests.tiny import TINY, use_cache

SURVEY = (
    "data=survey_file",
    "data.path=survey.jsonl",
    *(override for override in TINY if not override.startswith("data.")),
    "partition.unseen=0",
    "method.prior=none",
)


@pytest.fixture(autouse=True)
def _own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_cache(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)


def survey(path: Path, groups: int, questions: int = 14) -> None:
    rows = [
        {"group": f"g{g}", "question": f"How about {q} of {g}?", "options": ["yes", "no"], "distribution": [0.25, 0.75]}
        for g in range(groups)
        for q in range(questions)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))


def configs(place: Path) -> list[dict[str, object]]:
    return [tomllib.loads(path.read_text()) for path in sorted(place.glob("sites/*/node.toml"))]


def test_data_that_all_see_are_shared_out(tmp_path: Path) -> None:
    plan, run = prepare_local([*TINY, "output='my run'"], 3, tmp_path / "f", tmp_path)
    shares = [(c["partition-id"], c["num-partitions"]) for c in configs(tmp_path / "f")]
    assert shares == [(0, 3), (1, 3), (2, 3)]
    assert run.path == tmp_path / "my run"
    assert plan.overrides[-1] == f"output='{tmp_path / 'my run'}'"
    assert len({plan.address.port, *(site.runtime_port for site in plan.sites)}) == 4


def test_a_file_is_dealt_and_every_site_reads_its_part(tmp_path: Path) -> None:
    survey(tmp_path / "survey.jsonl", 5)
    plan, _ = prepare_local([*SURVEY, "output=run"], 2, tmp_path / "f", tmp_path / "parts")
    assert [c["data-path"] for c in configs(tmp_path / "f")] == ["data/survey.jsonl"] * 2
    parts = [(tmp_path / "f" / "sites" / site.name / "data" / "survey.jsonl").read_text() for site in plan.sites]
    assert [{json.loads(line)["group"] for line in part.splitlines()} for part in parts] == [
        {"g0", "g2", "g4"},
        {"g1", "g3"},
    ]
    assert all("client-prefix" not in c for c in configs(tmp_path / "f"))


def test_clients_of_the_same_name_get_their_sites_prefix(tmp_path: Path) -> None:
    survey(tmp_path / "survey.jsonl", 4)
    prepare_local([*SURVEY, "partition=pooled", "output=run"], 2, tmp_path / "f", tmp_path / "parts")
    assert [c["client-prefix"] for c in configs(tmp_path / "f")] == ["site-1-", "site-2-"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["partition.unseen=2"], "site-1: partition: no group is left to train on"),
        (["data.path=none.jsonl"], "none.jsonl"),
        (["federation.min_clients=5"], "federation.min_clients=5"),
        (["federation/sampler=fixed", "federation.sampler.size=9"], "9"),
        (["output=taken"], "not empty"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_written(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    survey(tmp_path / "survey.jsonl", 4)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").touch()
    with pytest.raises(UserError, match=message):
        prepare_local([*SURVEY, "output=run", *overrides], 2, tmp_path / "f", tmp_path / "parts")
    assert not (tmp_path / "f").exists()
    assert not (tmp_path / "run").exists()


def finished(path: Path, reason: str | None) -> RunDirectory:
    run = RunDirectory.create(path)
    status = "completed" if reason is None else "failed"
    timing, traffic = Timing(1.0, 1.0, 1, 1.0, 1.0), Traffic(1, 1)
    run.write_config({})
    run.write_summary(Summary("m", "d", status, 1, {}, {}, None, timing, traffic, 0, reason))
    return run


@pytest.mark.parametrize(
    ("reason", "code", "error", "message"),
    [
        ("UserError: partition: too few", 1, UserError, "^partition: too few$"),
        ("RunFailed: no nodes", 1, RunFailed, "^no nodes; the run is in .*, the logs are in "),
        ("OSError: disk", 1, RunFailed, "^OSError: disk; the run is in "),
        (None, 1, RunFailed, "Flower lost it after its end"),
    ],
)
def test_the_end_of_a_run_is_told_as_fedalign_run_does(
    tmp_path: Path, reason: str | None, code: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        read_result(finished(tmp_path / "r", reason), code, tmp_path / "f")


def test_a_completed_run_is_its_result(tmp_path: Path) -> None:
    result = read_result(finished(tmp_path / "r", None), 0, tmp_path / "f")
    assert (result.directory, result.summary.status) == (tmp_path / "r", "completed")


def test_a_run_that_never_began_leaves_no_directory(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "r")
    with pytest.raises(RunFailed, match="ended before it began; the logs are in"):
        read_result(run, 1, tmp_path / "f")
    assert not (tmp_path / "r").exists()
