"""A program is ended with all that it started, in whatever session."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from fedalign.deployment.process_group import ProcessGroup

PARENT = """
import subprocess, sys, time
child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
time.sleep(600)
"""


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def started(tmp_path: Path) -> ProcessGroup:
    (tmp_path / "logs").mkdir(exist_ok=True)
    process = ProcessGroup([sys.executable, "-c", PARENT], tmp_path / "logs" / "log", os.environ)
    wait_for(lambda: len(process.members()) == 2 and "deaf" in (tmp_path / "logs" / "log").read_text())
    return process


def test_kill_ends_a_child_in_another_session_too(tmp_path: Path) -> None:
    process = started(tmp_path)
    process.kill()
    assert process.members() == []
    assert process.code == -9


def test_stop_ends_what_does_not_listen(tmp_path: Path) -> None:
    process = started(tmp_path)
    began = time.monotonic()
    process.stop(0.5)
    assert time.monotonic() - began >= 0.5
    assert process.members() == []
    assert process.code == -15


def test_two_of_them_do_not_know_each_other(tmp_path: Path) -> None:
    one, other = started(tmp_path), started(tmp_path)
    one.kill()
    assert len(other.members()) == 2
    other.kill()
