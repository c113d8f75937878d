"""What breaks in a deployment, broken for real; the state is compared with a run in process that misses the same."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import ServerApp

from fedalign.contribution import State
from fedalign.engines.in_process import InProcess, InProcessGrid
from fedalign.federation.client_app import make_client_app
from fedalign.federation.messages import TRAIN
from fedalign.federation.site import OpenSite
from fedalign.report.run_directory import RunDirectory
from fedalign.run import start
from tests.laws.conftest import residuals

from .federation import TINY, Deployed, deployed, state_of, wait_for

pytestmark = [pytest.mark.deploy, pytest.mark.slow]

TOLERANCE = 1e-6
TRAINING = "Receiving: train message"
EVALUATED = "Sending: evaluate message"


class Without(InProcessGrid):
    """Three nodes of which the second loses every training message from a round on."""

    lost_from = 1

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        for message in messages:
            about = message.metadata
            if about.message_type == TRAIN and about.dst_node_id == 2 and int(about.group_id) >= self.lost_from:
                yield Message(Error(ErrorCode.NODE_UNAVAILABLE, "gone"), reply_to=message)
            else:
                yield from super().send_and_receive([message], timeout=timeout)


def in_process(folder: Path, *overrides: str) -> State:
    """Return the state of the undisturbed run."""
    return state_of(start([*(overrides or TINY), f"output={folder}"]).directory)


def without_second_site(folder: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> State:
    """Return the state of a run to which the second of three sites contributes nothing."""

    def run(engine: InProcess, server: ServerApp, open_site: OpenSite, clients: int, path: Path) -> None:
        contexts = {
            place + 1: Context(1, place + 1, {"partition-id": place, "num-partitions": 3}, RecordDict(), {})
            for place in range(3)
        }
        server(Without(make_client_app(open_site, path), contexts), Context(1, 0, {}, RecordDict(), {}))

    with monkeypatch.context() as patch:
        patch.setattr(InProcess, "run", run)
        patch.setattr(InProcess, "nodes", lambda engine, clients: 3)
        return in_process(folder, *overrides)


def assert_equal(one: State, other: State) -> None:
    largest, mean = residuals(one, other)
    assert largest <= TOLERANCE
    assert mean <= TOLERANCE


def finish(federation: Deployed) -> int:
    """Wait for run.sh and return its exit code."""
    process = federation.running.processes["run"]
    wait_for(lambda: process.code is not None, "the end of the run")
    print(federation.log("run"))
    assert process.code is not None
    return process.code


def resume(federation: Deployed) -> None:
    """Go on with the run, which is then completed."""
    code, told = federation.running.ask("run.sh", f"resume={federation.run}")
    assert code == 0, told
    assert "goes on after round 1 of gpo" in told


def test_a_killed_node_costs_its_own_contribution_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with deployed(tmp_path) as federation:
        federation.running.submit()
        federation.wait_for_log("site-2", TRAINING)
        federation.running.processes["site-2"].kill()
        assert finish(federation) == 0
        log = federation.log("run")
    assert "Node Unavailable" in log
    assert "is gone" in log
    assert_equal(without_second_site(tmp_path / "here", monkeypatch), state_of(federation.run))


def test_a_killed_serverapp_is_resumed(tmp_path: Path) -> None:
    with deployed(tmp_path) as federation:
        federation.running.submit()
        federation.wait_for_checkpoint(1)
        (serverapp,) = federation.processes("superlink", "flwr-serverapp")
        os.kill(serverapp, signal.SIGKILL)
        assert finish(federation) == 1
        resume(federation)
    assert_equal(in_process(tmp_path / "here"), state_of(federation.run))


def test_a_killed_superlink_is_started_again_and_the_run_resumed(tmp_path: Path) -> None:
    with deployed(tmp_path) as federation:
        federation.running.submit()
        federation.wait_for_checkpoint(1)
        federation.running.processes["superlink"].kill()
        federation.running.processes["run"].kill()
        federation.running.start_superlink()
        # The keys are in its database, and the sites connect again by themselves.
        resume(federation)
        _, listed = federation.running.ask("flower.sh", "list", "federation", "--format", "json")
    assert listed.count("finished:failed") == 1
    assert listed.count("finished:completed") == 1
    assert_equal(in_process(tmp_path / "here"), state_of(federation.run))


def test_a_node_that_never_answers_costs_the_timeout_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Long enough for the others on a busy machine; it passes three times: in training, evaluation and checkpoint.
    overrides = (*TINY, "federation.rounds=1", "federation.round_timeout=90")
    with deployed(tmp_path, *overrides) as federation:
        federation.running.submit()
        federation.wait_for_log("site-2", EVALUATED)
        # The SuperNode goes on with its heartbeat, but nobody starts a ClientApp any more.
        for pid in federation.processes("site-2", "flower-superexec"):
            os.kill(pid, signal.SIGSTOP)
        assert finish(federation) == 0
        log = federation.log("run")
    assert "round 1 of phase gpo: nothing to add from" in log
    assert "gpo: round 1 of 1" in log
    assert "no answer within 90 s" in log
    assert_equal(without_second_site(tmp_path / "here", monkeypatch, *overrides), state_of(federation.run))


GARBAGE = """
import fedalign.federation.desk as desk
from fedalign.contribution import Contribution

real = desk.encode_contribution


def garbage(honest):
    wrong = {name: tensor.flatten()[:1] * float("nan") for name, tensor in honest.tensors.items()}
    return real(Contribution(wrong, honest.scalars))


desk.encode_contribution = garbage
"""
"""What a site's every Python process does first, so that its changes of the model are NaN and of other shapes."""


def test_a_node_that_answers_garbage_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "sitecustomize.py").write_text(GARBAGE)
    with deployed(tmp_path, start=0) as federation:
        environment = federation.running.environment
        paths = environment["PYTHONPATH"]
        for place, site in enumerate(federation.plan.sites):
            environment["PYTHONPATH"] = f"{tmp_path / 'evil'}{os.pathsep}{paths}" if place == 1 else paths
            federation.running.start_site(site.name)
        environment["PYTHONPATH"] = paths
        federation.running.submit()
        assert finish(federation) == 0
        log = federation.log("run")
    assert "round 1 of phase gpo: nothing to add from" in log
    assert_equal(without_second_site(tmp_path / "here", monkeypatch), state_of(federation.run))


def test_a_disk_that_takes_no_more_ends_the_run_and_can_be_mended(tmp_path: Path) -> None:
    with deployed(tmp_path) as federation:
        federation.running.submit()
        federation.wait_for_checkpoint(1)
        (serverapp,) = federation.processes("superlink", "flwr-serverapp")
        # No file may grow any more: a full disk without a disk.
        resource.prlimit(serverapp, resource.RLIMIT_FSIZE, (1024, 1024))
        assert finish(federation) == 1
        assert "File too large" in federation.log("run")
        resume(federation)
    assert RunDirectory.open(federation.run).read_summary().status == "completed"
    assert_equal(in_process(tmp_path / "here"), state_of(federation.run))


def test_two_runs_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    with deployed(tmp_path) as federation:
        federation.running.submit()
        other = [*TINY, "seed=1", f"output={tmp_path / 'other'}"]
        code, told = federation.running.ask("run.sh", *other)
        assert code == 0, told
        assert finish(federation) == 0
    assert_equal(in_process(tmp_path / "here"), state_of(federation.run))
    assert_equal(
        state_of(start([*other[:-1], f"output={tmp_path / 'here-1'}"]).directory), state_of(tmp_path / "other")
    )


def test_a_server_waits_for_missing_sites_and_then_says_so(tmp_path: Path) -> None:
    with deployed(tmp_path, *TINY, "federation.node_timeout=20", start=2) as federation:
        federation.running.submit()
        assert finish(federation) == 1
    told = "2 of 3 nodes connected within 20 s; start the others or raise federation.node_timeout"
    assert told in federation.log("run")
    assert told in (RunDirectory.open(federation.run).read_summary().reason or "")


def test_a_site_that_comes_late_takes_part_from_then_on(tmp_path: Path) -> None:
    with deployed(tmp_path, *TINY, "federation.rounds=8", start=2) as federation:
        asked = federation.running.root / "operator" / "run.toml"
        asked.write_text(asked.read_text().replace("nodes = 3", "nodes = 2"))
        federation.running.submit()
        federation.wait_for_checkpoint(1)
        federation.running.start_site(federation.plan.sites[2].name)
        assert finish(federation) == 0
        log = federation.log("run")
    assert "came late and takes part from now on" in log
    rows = [json.loads(line) for line in (federation.run / "metrics.jsonl").read_text().splitlines()]
    server = {(row["round"], row["name"]): row["value"] for row in rows if row["scope"] == "server"}
    assert [server[number, "cohort"] - server[number, "clients_failed"] for number in (1, 8)] == [2, 3]
