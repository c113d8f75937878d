"""Which process writes a run, and whether it is still there."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Writer:
    """A process, named so that no other is taken for it.

    Parameters
    ----------
    host : str
    pid : int
    process_started : int or None
        When it began, in the kernel's ticks after boot: a pid is given anew, the pair is not. None off Linux.
    namespace : str or None
        The space that the pid counts in; containers on one machine have their own. None off Linux.
    """

    host: str
    pid: int
    process_started: int | None
    namespace: str | None


def this_process() -> Writer:
    """Return the process that asks."""
    pid = os.getpid()
    return Writer(socket.gethostname(), pid, _started(pid), _namespace())


def is_gone(writer: Writer) -> bool | None:
    """Tell whether a process has ended; None where that cannot be seen: on another machine, or in a container."""
    if (writer.host, writer.namespace) != (socket.gethostname(), _namespace()):
        return None
    try:
        os.kill(writer.pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        # Somebody else's process is one, too.
        pass
    found = _started(writer.pid)
    return None not in (found, writer.process_started) and found != writer.process_started


def _started(pid: int) -> int | None:
    try:
        content = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name in brackets may hold spaces and brackets; what follows the last of them is field 3 and on.
    fields = content.rpartition(")")[2].split()
    # A zombie has ended, whoever has not noticed yet.
    return -1 if fields[0] == "Z" else int(fields[19])


def _namespace() -> str | None:
    try:
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - a name, not a path
    except OSError:
        return None
