"""``fedalign report --serve``: a run's page on this machine alone, renewed while the run goes on."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console

from fedalign.errors import UserError
from fedalign.report.live_page import SCRIPT
from fedalign.report.live_run import LiveRun

_log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"

_HEADERS = {
    "Cache-Control": "no-store",
    # Whatever a run's texts might hold, nothing is executed but the one script, and nothing is loaded from elsewhere.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'unsafe-inline'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class Answer:
    """What a path gives: a document, or with ``location`` the way to another path."""

    status: int
    kind: str
    content: bytes
    location: str | None = None


class ReportServer(ThreadingHTTPServer):
    """Serves one run on loopback; ``serve_forever`` goes on until it is interrupted.

    Only the paths ``/``, ``/live.js``, ``/state.json`` and ``/report`` are there, only to be read, and only for
    requests that name this server as their host: those of a page whose name was turned to 127.0.0.1 do not.

    Parameters
    ----------
    directory : Path
        The run directory.
    port : int
        0 takes a free one.

    Raises
    ------
    UserError
        If ``directory`` is no run, or the port is taken.
    """

    daemon_threads = True

    def __init__(self, directory: Path, port: int) -> None:
        run = LiveRun(directory)
        self.answers: dict[str, Callable[[], Answer]] = {
            "/": lambda: _page(run),
            "/live.js": lambda: Answer(200, "text/javascript", SCRIPT.encode()),
            "/state.json": lambda: _state(run),
            "/report": lambda: _report(run),
            "/favicon.ico": lambda: Answer(204, "image/x-icon", b""),
        }
        try:
            super().__init__((LOOPBACK, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise UserError(f"--port={port}: cannot be listened on ({reason}); choose another, or 0") from error

    @property
    def url(self) -> str:
        """Where a browser finds it."""
        return f"http://{LOOPBACK}:{self.server_port}/"

    @property
    def hosts(self) -> tuple[str, ...]:
        """What requests may call it."""
        names = (LOOPBACK, "localhost")
        return tuple(f"{name}:{self.server_port}" for name in names) + (names if self.server_port == 80 else ())

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Pass over browsers that went away; log anything else."""
        _log.debug("a request was not answered", exc_info=True)


def serve_report(console: Console, directory: Path, port: int) -> None:
    """Serve a run's page until Ctrl-C.

    Raises
    ------
    UserError
        If ``directory`` is no run, or the port is taken.
    """
    with ReportServer(directory, port) as server:
        console.print(f"{directory}: {server.url} (Ctrl-C ends it)", soft_wrap=True, markup=False, highlight=False)
        server.serve_forever()


def _page(run: LiveRun) -> Answer:
    view = run.look()
    if view.over:
        return Answer(302, "text/plain", b"", "/report")
    return Answer(200, "text/html", view.page.encode())


def _state(run: LiveRun) -> Answer:
    view = run.look()
    content = {
        "title": view.title,
        "blocks": view.blocks,
        "more": view.more,
        "report": "/report" if view.over else None,
    }
    return Answer(200, "application/json", json.dumps(content, allow_nan=False).encode())


def _report(run: LiveRun) -> Answer:
    # A run that was resumed has an old report.
    return Answer(200, "text/html", run.read_report()) if run.look().over else Answer(302, "text/plain", b"", "/")


class _Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: ReportServer
    server_version, sys_version = "fedalign", ""
    timeout = 30
    """Seconds that a silent connection is kept."""

    def do_GET(self) -> None:
        self._send(self._answer())

    def do_HEAD(self) -> None:
        self._send(self._answer())

    def log_message(self, format: str, *args: Any) -> None:
        _log.debug(format, *args)

    def _answer(self) -> Answer:
        if self.headers.get_all("Host") not in [[host] for host in self.server.hosts]:
            return _told(403, f"this server is called {self.server.hosts[0]}")
        found = self.server.answers.get(urlsplit(self.path).path)
        if found is None:
            return _told(404, "there is no such page")
        try:
            return found()
        except (UserError, OSError) as error:
            return _told(500, " ".join(str(error).split()))

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", f"{answer.kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(answer.content)))
        if answer.location is not None:
            self.send_header("Location", answer.location)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.content)


def _told(status: int, message: str) -> Answer:
    return Answer(status, "text/plain", f"{message}\n".encode())
