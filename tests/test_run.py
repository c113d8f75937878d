"""One run, top to bottom: what it leaves behind when it ends well, badly, or not at all."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, RecordDict
from safetensors.torch import load_file

from fedalign import run, run_end
from fedalign.config import resolve, to_json
from fedalign.engines.in_process import InProcess, InProcessGrid
from fedalign.errors import RunFailed, UserError
from fedalign.federation.client_app import make_client_app
from fedalign.federation.conductor import Conductor
from fedalign.federation.observer import RoundReport
from fedalign.methods.pluralllm import GPOPhase
from fedalign.model_files import load_model
from fedalign.report.metrics_log import MetricsLog
from fedalign.report.run_directory import RunDirectory
from fedalign.report.run_status import read_status
from fedalign.run import resume, start, start_on_grid
from fedalign.site import open_site
from tests.tiny import DATA, TINY, trained_run, use_cache


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_run(tmp_path_factory.getbasetemp())


@pytest.fixture(autouse=True)
def _own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_cache(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)


def summary(directory: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((directory / "summary.json").read_text())
    return content


def test_a_run_leaves_its_whole_directory(trained: Path) -> None:
    for name in ("config.yaml", "environment.json", "metrics.jsonl", "summary.json", "report.html"):
        assert (trained / name).stat().st_size > 0
    directory = RunDirectory.open(trained)
    assert directory.read_config() == resolve([*TINY, f"output={trained}"])
    assert set(load_model(directory.model, "pluralllm")) == {"question_prior", "gpo"}
    assert {path.name for path in directory.checkpoints.iterdir()} == {"newest", "best", "clients"}


def test_the_summary_tells_what_was_done(trained: Path) -> None:
    told = summary(trained)
    assert (told["status"], told["seed"]) == ("completed", 0)
    assert (told["method"], told["data"]) == ("pluralllm", "synthetic_survey")
    # One round of the prior and one of the network, three training clients in each.
    assert (told["rounds"], told["timing"]["client_updates"]) == (2, 6)
    assert told["privacy"] is None
    measured = [m for m in RunDirectory.open(trained).read_metrics() if m.scope == "test" and m.group is None]
    assert {m.name: m.value for m in measured}.items() <= told["metrics"].items()
    assert len(measured) == 18


def test_the_status_tells_how_it_ended(trained: Path) -> None:
    found = read_status(trained)
    assert (found.state, found.resume) == ("completed", None)
    assert found.checkpoints == {"newest": ("gpo", 1), "best": ("gpo", 1)}
    assert found.heartbeat is not None
    assert [(phase.name, phase.done) for phase in found.heartbeat.phases] == [("question_prior", 1), ("gpo", 1)]
    assert found.heartbeat.headline_value == found.metrics["unseen/alignment_score"]


def test_traffic_is_counted_by_client(trained: Path) -> None:
    """States go to three training clients a round and to all five at each of four evaluations."""
    sizes = {phase: size(trained / "model" / f"{phase}.safetensors") for phase in ("question_prior", "gpo")}
    asks = open_site(to_json(resolve(TINY)), {}).data.questionnaire
    # The prior before its round: an id, an offset and a count a question, one more offset, a sum an option.
    empty = 8 + (8 + 8 + 4) * len(asks) + 4 * sum(asks.values())
    down = (3 + 5) * empty + 5 * sizes["question_prior"] + (5 + 3 + 5) * sizes["gpo"]
    assert summary(trained)["traffic"]["down_bytes"] == down


def size(path: Path) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in load_file(path).values())


@pytest.mark.usefixtures("real_plots")
def test_without_an_output_it_makes_a_directory_by_name_and_time(tmp_path: Path) -> None:
    result = start([*DATA, "method=uniform", "name=floor"])
    assert result.directory.parent == Path("outputs") / "floor"
    assert (tmp_path / result.directory / "report.html").is_file()


@pytest.mark.parametrize(
    "wrong",
    [
        "federation.rounds=-1",
        "federation.rouns=1",
        "model.heads=3",
        "data.path=nowhere.jsonl",
        "partition.min_questions=100",
        "method.evaluation.context_questions=40",
    ],
)
def test_a_mistake_leaves_nothing_behind(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(UserError):
        start([*TINY, wrong, "output=fresh"])
    assert not (tmp_path / "fresh").exists()
    assert not (tmp_path / "outputs").exists()


def test_an_earlier_run_is_not_overwritten(trained: Path) -> None:
    before = (trained / "summary.json").read_bytes()
    with pytest.raises(UserError, match="the directory is not empty"):
        start([*TINY, f"output={trained}"])
    assert (trained / "summary.json").read_bytes() == before


def failing(*arguments: Any) -> Any:
    raise ArithmeticError("no luck")


def test_a_federation_that_breaks_down_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GPOPhase, "local", failing)
    with pytest.raises(RunFailed, match="ArithmeticError: no luck"):
        start([*TINY, "output=broken"])
    told = summary(tmp_path / "broken")
    assert told["status"] == "failed"
    reason = "RunFailed: every client failed in round 1 of phase gpo; the first said: group-01: ArithmeticError"
    assert told["reason"].startswith(reason)
    assert read_status(tmp_path / "broken").state == "failed"
    assert not (tmp_path / "broken" / "model").exists()
    assert (tmp_path / "broken" / "report.html").is_file()


def test_an_interrupted_run_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Conductor, "_train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        start([*TINY, "output=stopped"])
    assert (summary(tmp_path / "stopped")["status"], summary(tmp_path / "stopped")["reason"]) == (
        "failed",
        "KeyboardInterrupt",
    )


def test_why_a_run_failed_matters_more_than_its_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GPOPhase, "local", failing)
    monkeypatch.setattr(run_end, "render_run", failing)
    with pytest.raises(RunFailed, match="no luck"):
        start([*TINY, "output=broken"])
    assert read_status(Path("broken")).state == "failed"


def test_an_engine_that_ends_early_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InProcess, "run", lambda *arguments: None)
    with pytest.raises(RunFailed, match="the engine ended before the run did"):
        start([*TINY, "output=early"])
    assert summary(tmp_path / "early")["status"] == "failed"


def test_threads_are_the_run_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(InProcess, "run", lambda *arguments: seen.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    with pytest.raises(RunFailed):
        start([*TINY, "engine.threads=3", "output=early"])
    assert seen == [3]
    assert torch.get_num_threads() == before


def test_a_finished_run_resumed_ends_where_it_was(tmp_path: Path, trained: Path) -> None:
    shutil.copytree(trained, tmp_path / "again")
    before, log = summary(trained), (trained / "metrics.jsonl").read_bytes()
    result = resume(tmp_path / "again")
    assert result.summary.metrics == before["metrics"]
    assert result.summary.groups == before["groups"]
    assert result.summary.timing.client_updates == 6
    assert (tmp_path / "again" / "metrics.jsonl").read_bytes() == log
    known, got = (load_file(path / "model" / "gpo.safetensors") for path in (trained, tmp_path / "again"))
    assert all(torch.equal(known[name], got[name]) for name in known)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: shutil.rmtree(path), "no such directory"),
        (lambda path: (path / "config.yaml").unlink(), "not a run directory"),
        (lambda path: (path / "config.yaml").write_text("seed: 3"), "missing key method"),
        (lambda path: shutil.rmtree(path / "checkpoints"), "no checkpoint there"),
    ],
)
def test_what_cannot_be_resumed_is_left_as_it_is(tmp_path: Path, trained: Path, damage: Any, message: str) -> None:
    shutil.copytree(trained, tmp_path / "again")
    damage(tmp_path / "again")
    # Not the cache beside it, which opening the data may fill.
    files = sorted((tmp_path / "again").rglob("*"))
    with pytest.raises(UserError, match=message):
        resume(tmp_path / "again")
    assert sorted((tmp_path / "again").rglob("*")) == files


def test_another_method_cannot_go_on_from_it(tmp_path: Path, trained: Path) -> None:
    shutil.copytree(trained, tmp_path / "again")
    config = (tmp_path / "again" / "config.yaml").read_text()
    (tmp_path / "again" / "config.yaml").write_text(config.replace("name: pluralllm", "name: other"))
    with pytest.raises(UserError, match="a checkpoint of method 'pluralllm'"):
        resume(tmp_path / "again")


def test_a_grid_that_flower_gives_runs_the_same_run(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The nodes read the data; the server's process asks for none."""
    nodes = {
        number: Context(1, number, {"partition-id": number - 1}, RecordDict(), {"nodes": 5}) for number in range(1, 6)
    }
    grid = InProcessGrid(make_client_app(open_site), nodes)
    monkeypatch.setattr(run, "open_site", failing)
    start_on_grid(grid, Context(1, 0, {}, RecordDict(), {"nodes": 5}), [*TINY, "output=deployed"])
    known, got = (load_file(path / "model" / "gpo.safetensors") for path in (trained, tmp_path / "deployed"))
    for name, tensor in known.items():
        torch.testing.assert_close(got[name], tensor, rtol=0, atol=1e-6)
    assert summary(tmp_path / "deployed")["metrics"] == pytest.approx(summary(trained)["metrics"], abs=1e-5)


def test_a_run_on_such_a_grid_is_resumed_on_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As after the death of a SuperLink: new contexts on the nodes, whose clients' memories are on their own disks."""

    def go(*overrides: str) -> None:
        config = {"partition-id": 0, "num-partitions": 1, "state-path": str(tmp_path / "site")}
        grid = InProcessGrid(make_client_app(open_site), {1: Context(1, 1, config, RecordDict(), {})})
        start_on_grid(grid, Context(1, 0, {}, RecordDict(), {"nodes": 1}), overrides)

    rounds = ("federation.rounds=3", "federation.checkpoint_every=1")
    go(*TINY, *rounds, "output=straight")
    round_ended = MetricsLog.round_ended

    def dies(log: MetricsLog, report: RoundReport) -> None:
        round_ended(log, report)
        if report.round == 3 and report.phase == "gpo":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MetricsLog, "round_ended", dies)
        go(*TINY, *rounds, "output=killed")
    with caplog.at_level(logging.INFO):
        go("resume=killed")
    assert f"the run is in {tmp_path / 'killed'}" in caplog.text
    assert "goes on after round 2 of gpo" in caplog.text
    one, other = (load_file(tmp_path / name / "model" / "gpo.safetensors") for name in ("straight", "killed"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert summary(tmp_path / "killed")["status"] == "completed"


@pytest.mark.parametrize("overrides", [["resume=a", "seed=1"], ["resume=a", "resume=b"]])
def test_resume_stands_alone(overrides: list[str]) -> None:
    with pytest.raises(UserError, match="give it alone"):
        run.resumed_directory(overrides)


def test_what_is_to_be_resumed_is_named() -> None:
    assert run.resumed_directory(["resume=a b"]) == Path("a b")
    assert run.resumed_directory(["seed=1"]) is None
    assert run.resumed_directory([]) is None


def test_nodes_of_others_are_not_simulated(tmp_path: Path) -> None:
    grid = InProcessGrid(make_client_app(open_site), {})
    with pytest.raises(UserError, match="population: nodes of a Flower federation come and go by themselves"):
        start_on_grid(
            grid, Context(1, 0, {}, RecordDict(), {}), [*TINY, "population=silos", f"output={tmp_path / 'simulated'}"]
        )
    assert list(tmp_path.iterdir()) == []


def test_compressed_replies_of_single_nodes_give_the_same_run(tmp_path: Path) -> None:
    chosen = [*TINY, "compression=topk_int8"]
    start([*chosen, f"output={tmp_path / 'here'}"])
    nodes = {
        number: Context(1, number, {"partition-id": number - 1}, RecordDict(), {"nodes": 5}) for number in range(1, 6)
    }
    grid = InProcessGrid(make_client_app(open_site), nodes)
    start_on_grid(grid, Context(1, 0, {}, RecordDict(), {"nodes": 5}), [*chosen, f"output={tmp_path / 'there'}"])
    here, there = (load_file(tmp_path / name / "model" / "gpo.safetensors") for name in ("here", "there"))
    for name, tensor in here.items():
        torch.testing.assert_close(there[name], tensor, rtol=0, atol=1e-6)
