"""A federation's processes on this machine: started with the scripts that were written for it, watched, taken down."""

from __future__ import annotations

import os
import socket
import ssl
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import fedalign
from fedalign.data.embed import default_cache_directory
from fedalign.deployment.folder import OPERATOR, SITES, SUPERLINK
from fedalign.deployment.plan import Address
from fedalign.deployment.process_group import ProcessGroup
from fedalign.errors import RunFailed

_START_SECONDS = 120.0
_STOP_SECONDS = 10.0
_LOOK_SECONDS = 0.2


class RunningFederation:
    """The processes of a federation whose directory was written by ``write_federation``.

    As a context it takes everything down at its end, whatever happened.

    Parameters
    ----------
    root : Path
        The directory; ``logs/`` is added to it.
    address : Address
        On this machine.
    environment : mapping, optional
        Added to the processes' environment.
    """

    def __init__(self, root: Path, address: Address, environment: Mapping[str, str] | None = None) -> None:
        self.root, self.address = root, address
        self.environment = {**same_fedalign(), **(environment or {})}
        self.processes: dict[str, ProcessGroup] = {}

    def __enter__(self) -> RunningFederation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            # The sites first: they would otherwise complain about a server that is gone.
            for name in sorted(self.processes, key=lambda name: name == SUPERLINK):
                self.processes[name].stop(_STOP_SECONDS)
        finally:
            # Another Ctrl-C has cut that short.
            for process in self.processes.values():
                process.kill()

    def start(self, sites: Sequence[str]) -> None:
        """Start the SuperLink, register all keys, and start some sites.

        Raises
        ------
        RunFailed
            If the SuperLink does not come up, or refuses a key.
        """
        self.start_superlink()
        self.register()
        for site in sites:
            self.start_site(site)

    def start_superlink(self) -> None:
        """Start the SuperLink and wait until it answers.

        Raises
        ------
        RunFailed
            If it ends, or does not answer in time.
        """
        process = self._start(SUPERLINK, [str(self.root / SUPERLINK / "start.sh")])
        context = ssl.create_default_context(cafile=self.root / OPERATOR / "ca.crt")
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers(context):
            if process.code is not None or time.monotonic() > deadline:
                last = " ".join(self.log(SUPERLINK).splitlines()[-3:])
                raise RunFailed(f"the SuperLink does not start: {last}")
            time.sleep(_LOOK_SECONDS)

    def start_site(self, site: str) -> ProcessGroup:
        """Start a site's SuperNode."""
        return self._start(site, [str(self.root / SITES / site / "start.sh")])

    def register(self) -> None:
        """Tell the SuperLink the sites' keys.

        Raises
        ------
        RunFailed
            If it refuses one.
        """
        code, told = self.ask("register.sh")
        if code:
            raise RunFailed(f"the sites' keys cannot be registered: {told.strip()}")

    def operate(self, script: str, *arguments: str) -> int:
        """Run one of the operator's scripts to its end and return its exit code; it writes where this process does."""
        return self._finish(ProcessGroup(self._command(script, arguments), None, self.environment))

    def ask(self, script: str, *arguments: str) -> tuple[int, str]:
        """Run one of the operator's scripts to its end and return its exit code and what it wrote."""
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "log"
            code = self._finish(ProcessGroup(self._command(script, arguments), log, self.environment))
            return code, log.read_text(errors="replace")

    def submit(self, *arguments: str) -> ProcessGroup:
        """Start ``run.sh`` beside this process, with its output in a log."""
        return self._start("run", self._command("run.sh", arguments))

    def log(self, name: str) -> str:
        """Return what a process that was started has written so far: ``superlink``, a site, or ``run``."""
        path = self._log(name)
        return path.read_text(errors="replace") if path.exists() else ""

    def _log(self, name: str) -> Path:
        return self.root / "logs" / f"{name}.log"

    def _start(self, name: str, command: Sequence[str]) -> ProcessGroup:
        self.processes[name] = ProcessGroup(command, self._log(name), self.environment)
        return self.processes[name]

    def _command(self, script: str, arguments: Sequence[str]) -> list[str]:
        return [str(self.root / OPERATOR / script), *arguments]

    @staticmethod
    def _finish(process: ProcessGroup) -> int:
        try:
            return process.wait()
        finally:
            # It has ended, or this process is being interrupted.
            process.kill()

    def _answers(self, context: ssl.SSLContext) -> bool:
        try:
            with urllib.request.urlopen(f"https://{self.address}/health", context=context, timeout=5) as reply:
                return bool(reply.status == 200)
        except (urllib.error.URLError, OSError):
            return False


def free_ports(number: int) -> list[int]:
    """Return ports of this machine that nobody listens on."""
    opened = [socket.socket() for _ in range(number)]
    try:
        for each in opened:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in opened]
    finally:
        for each in opened:
            each.close()


def same_fedalign() -> dict[str, str]:
    """Return an environment in which all processes run this very fedalign and share its cache of embeddings."""
    source = str(Path(fedalign.__file__).resolve().parents[1])
    paths = [source, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "FEDALIGN_BIN": str(Path(sys.executable).parent),
        "FEDALIGN_CACHE": str(default_cache_directory().parent.resolve()),
        "PYTHONPATH": os.pathsep.join(paths),
    }
