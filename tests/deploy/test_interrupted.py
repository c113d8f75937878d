"""``fedalign deploy --local`` that is interrupted leaves no process behind, whatever it was doing."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedalign.deployment.running import same_fedalign
from tests.tiny import TINY

from .federation import wait_for

pytestmark = [pytest.mark.deploy, pytest.mark.slow]


def marked(mark: str) -> list[int]:
    """Return the processes whose environment holds a mark."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found


@pytest.mark.parametrize("request_to_end", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_behind(tmp_path: Path, request_to_end: signal.Signals) -> None:
    mark = secrets.token_hex(16)
    command = [sys.executable, "-m", "fedalign.cli", "deploy", "--local", "2", "--output", "f", *TINY, "output=run"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env={**os.environ, **same_fedalign(), "MARK": mark},
            stdout=log,
            stderr=log,
            # A shell that runs the tests in the background lets them ignore Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    try:
        # Server, sites and the command that submits the run are there.
        wait_for(lambda: "run " in (tmp_path / "log").read_text() and len(marked(mark)) > 5, "the run")
        process.send_signal(request_to_end)
        assert process.wait(timeout=300) == 130
        assert marked(mark) == []
    finally:
        for pid in marked(mark):
            os.kill(pid, signal.SIGKILL)
    assert "fedalign: interrupted" in (tmp_path / "log").read_text()
