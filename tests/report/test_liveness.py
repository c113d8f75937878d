"""Whether the process that writes a run is still there."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from fedalign.report.liveness import is_gone, this_process

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_this_process_is_there() -> None:
    assert is_gone(this_process()) is False


def test_a_process_that_ended_is_gone_even_before_its_parent_notices() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    writer = replace(this_process(), pid=child.pid, process_started=None)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    zombie = is_gone(replace(writer, process_started=5))
    child.wait()
    assert is_gone(writer) is True
    assert zombie is True


@ON_LINUX
def test_another_process_under_its_number_is_not_it() -> None:
    me = this_process()
    assert me.process_started is not None
    assert is_gone(replace(me, process_started=me.process_started - 1)) is True


@pytest.mark.parametrize("elsewhere", [{"host": "another-machine"}, {"namespace": "pid:[1]"}])
def test_another_machine_or_container_cannot_be_seen(elsewhere: dict[str, str]) -> None:
    assert is_gone(replace(this_process(), pid=2**22 + 1, **elsewhere)) is None


def test_somebody_elses_process_is_there() -> None:
    assert is_gone(replace(this_process(), pid=1, process_started=None)) is False
