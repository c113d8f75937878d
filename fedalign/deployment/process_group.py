"""A program and all that it starts, which can be ended together."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_LOOK_SECONDS = 0.05
_COOKIE = "FEDALIGN_PROCESS_GROUP"


class ProcessGroup:
    """A program and its descendants.

    Flower's daemons start helpers in sessions of their own, so neither a session nor a process group holds them all.
    What they all have is an environment that holds a random word; where the system does not show environments
    (no ``/proc``), only the program's own process group is ended.

    Parameters
    ----------
    command : sequence of str
    log : Path or None
        What it writes is appended to it; None lets it write where this process does.
    environment : mapping
    """

    def __init__(self, command: Sequence[str], log: Path | None, environment: Mapping[str, str]) -> None:
        word = secrets.token_hex(16)
        self._entry = f"{_COOKIE}={word}".encode()
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.nullcontext() if log is None else log.open("ab") as opened:
            self._leader = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=opened,
                stderr=opened,
                env={**environment, _COOKIE: word},
                start_new_session=True,
            )

    @property
    def code(self) -> int | None:
        """The program's exit code; None while it runs."""
        return self._leader.poll()

    def wait(self) -> int:
        """Wait until the program has ended, and return its exit code."""
        return self._leader.wait()

    def members(self) -> list[int]:
        """Return the process ids of the program and its descendants, as far as they have not ended."""
        self._leader.poll()
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            # A process may end, or be somebody else's.
            with contextlib.suppress(OSError):
                if self._entry in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
        return found

    def kill(self) -> None:
        """End everything at once, as a crash of the machine would."""
        self._signal(signal.SIGKILL)
        self._leader.wait()
        # Who was started meanwhile.
        while self.members():
            self._signal(signal.SIGKILL)
            time.sleep(_LOOK_SECONDS)

    def stop(self, grace: float) -> None:
        """Ask everything to end, and end what has not after ``grace`` seconds."""
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + grace
        while (self.code is None or self.members()) and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)
        self.kill()

    def _signal(self, number: signal.Signals) -> None:
        if self.code is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._leader.pid, number)
        for pid in self.members():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
