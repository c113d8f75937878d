"""Runs on a Ray of their own, as a user starts them: whatever ends them, nothing stays, and a killed one resumes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.laws.conftest import TINY

pytestmark = pytest.mark.slow

MARK = "FEDALIGN_TEST_MARK"
PATIENCE = 240.0
CLI = (sys.executable, "-c", "import sys; from fedalign.cli import main; sys.exit(main())", "run")
# Only this engine's own option differs between runs that are compared.
RAY = ("engine=ray", "engine.cpus_per_worker=0.5", "engine.object_store_mb=100")


class World:
    """Starts programs whose descendants can all be found again."""

    def __init__(self, path: Path) -> None:
        self.path, self.mark = path, uuid.uuid4().hex
        self.environment = {**os.environ, MARK: self.mark, "FEDALIGN_CACHE": str(path / "cache")}
        self.shared = set(Path("/dev/shm").iterdir())
        self.ports = open_ports()
        self.started: list[int] = []

    def start(self, name: str, *overrides: str) -> subprocess.Popen[str]:
        command = [*CLI, *TINY, *RAY, *overrides, f"output={self.path / name}"]
        return self.program(command)

    def program(self, command: list[str]) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            # A job in the background of a shell ignores Ctrl-C; a user's does not.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler), start_new_session=True,
        )  # fmt: skip
        self.started.append(process.pid)
        return process

    def wait_for_round(self, name: str, number: int, process: subprocess.Popen[str]) -> None:
        log = self.path / name / "metrics.jsonl"

        def there() -> bool:
            assert process.poll() is None, process.communicate()[0]
            lines = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
            return any(line["phase"] == "gpo" and line["round"] >= number for line in lines)

        eventually(there)

    def processes(self) -> list[int]:
        """Return everybody who was started with our mark in the environment."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"{MARK}={self.mark}".encode() in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
            except OSError:
                continue
        return found

    def titles(self) -> list[str]:
        found = []
        for number in self.processes():
            with contextlib.suppress(OSError):
                found.append(Path(f"/proc/{number}/cmdline").read_text())
        return found

    def check_nothing_is_left(self) -> None:
        eventually(lambda: not self.processes())
        eventually(lambda: set(Path("/dev/shm").iterdir()) <= self.shared, 30)
        # Another test of this machine may have ports of its own for a while.
        eventually(lambda: open_ports() <= self.ports)
        assert self.directories() == []

    def directories(self) -> list[Path]:
        """Return what our programs have left beside other temporary files."""
        place = Path(tempfile.gettempdir())
        return [path for number in self.started for path in place.glob(f"fedalign-{number}-*")]

    def state(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.path / name / "model" / "gpo.safetensors")


def eventually(true: Callable[[], bool], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    for number in world.processes():
        os.kill(number, signal.SIGKILL)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    said, _ = process.communicate(timeout=PATIENCE)
    return process.returncode, said


def test_a_run_that_is_killed_resumes_and_nothing_is_left_of_either(world: World) -> None:
    long = ("federation.rounds=100", "federation.evaluate_every=100")
    assert ended(world.start("straight", *long))[0] == 0
    world.check_nothing_is_left()
    killed = world.start("killed", *long)
    world.wait_for_round("killed", 3, killed)
    killed.kill()
    killed.wait()
    # What a dead process left on disk goes with the next run.
    assert len(world.directories()) == 1
    assert not (world.path / "killed" / "model").exists()
    code, said = ended(world.program([*CLI, f"resume={world.path / 'killed'}"]))
    assert code == 0, said
    one, other = world.state("straight"), world.state("killed")
    assert all(torch.equal(one[name], other[name]) for name in one)
    world.check_nothing_is_left()


def test_one_ctrl_c_ends_a_run_and_all_that_belongs_to_it(world: World) -> None:
    process = world.start("run", "federation.rounds=4000")
    world.wait_for_round("run", 2, process)
    # A terminal sends it to the whole group.
    os.killpg(process.pid, signal.SIGINT)
    code, said = ended(process)
    assert code == 130
    assert said.strip().endswith("fedalign: interrupted")
    assert json.loads((world.path / "run" / "summary.json").read_text())["status"] == "failed"
    world.check_nothing_is_left()


def test_an_error_leaves_nothing_either(world: World) -> None:
    code, said = ended(world.start("run", "federation.round_timeout=0.000001"))
    assert code == 1
    assert "every client failed" in said
    world.check_nothing_is_left()


def test_a_cluster_that_runs_is_joined_and_left_running(world: World) -> None:
    port, directory = free_port(), tempfile.mkdtemp(prefix="fa", dir="/tmp")
    head = world.program([
        str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--port={port}", "--num-cpus=2",
        "--include-dashboard=false", f"--temp-dir={directory}", "--object-store-memory=100000000",
        "--disable-usage-stats", f"--node-ip-address={ADDRESS}",
    ])  # fmt: skip
    eventually(lambda: listening(port))
    assert not open_ports() <= world.ports
    code, said = ended(world.start("joined", f"engine.address={ADDRESS}:{port}", "federation.rounds=2"))
    assert code == 0, said
    code, said = ended(world.start("again", f"engine.address={ADDRESS}:{port}", "federation.rounds=2"))
    assert code == 0, said
    assert head.poll() is None
    assert listening(port)
    eventually(lambda: not any(title.startswith("ray::Worker") for title in world.titles()), 60)
    one, other = world.state("joined"), world.state("again")
    assert all(torch.equal(one[name], other[name]) for name in one)
    head.terminate()
    head.wait()
    shutil.rmtree(directory, ignore_errors=True)
    world.check_nothing_is_left()


ADDRESS = "127.0.0.1"


def open_ports() -> set[str]:
    """Return the addresses and ports that somebody on this machine listens on."""
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {address for _, address, _, state, *_ in rows if state == "0A"}


def free_port() -> int:
    with socket.socket() as found:
        found.bind((ADDRESS, 0))
        return int(found.getsockname()[1])


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((ADDRESS, port)) == 0
