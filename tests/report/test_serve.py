"""A run's page on loopback: it keeps up with the run, it tells only its own pages, and only those who may ask."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedalign.errors import UserError
from fedalign.federation.observer import PhasePlan, RoundReport
from fedalign.metrics.record import Metric
from fedalign.report.heartbeat import StatusFile
from fedalign.report.metrics_log import to_line
from fedalign.report.render import render_run
from fedalign.report.serve import ReportServer

HEADLINE = "unseen/alignment_score"
EVIL = "<img src=x onerror=alert(1)>"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Going:
    """A run that goes on as the test says."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "summary.json").rename(path / "kept.json")
        self.status = StatusFile(path / "status.json", HEADLINE)
        self.status.run_started([PhasePlan("gpo", 9)], None)
        self.status._write()

    def write(self, text: str) -> None:
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(text)

    def round(self, number: int, value: float) -> None:
        metrics = (Metric("gpo", number, "eval", None, HEADLINE, value, 1.0),)
        self.write("".join(to_line(metric) + "\n" for metric in metrics))
        self.status.round_ended(RoundReport("gpo", number, 8, 0, 1.0, metrics))
        self.status._write()

    def end(self) -> None:
        (self.path / "kept.json").rename(self.path / "summary.json")
        render_run(self.path)
        self.status.close("completed", None)


@pytest.fixture
def going(make_run: Callable[..., Path]) -> Going:
    return Going(make_run("run"))


@contextmanager
def serving(path: Path) -> Iterator[ReportServer]:
    with ReportServer(path, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(
    server: ReportServer, path: str, method: str = "GET", **headers: str
) -> tuple[int, http.client.HTTPMessage, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    found = response.status, response.headers, response.read().decode()
    connection.close()
    return found


def state(server: ReportServer) -> dict[str, Any]:
    status, _, content = ask(server, "/state.json")
    assert status == 200
    return json.loads(content)  # type: ignore[no-any-return]


def test_the_page_is_there_before_any_script_runs(going: Going) -> None:
    going.round(4, 0.8125)
    with serving(going.path) as server:
        status, headers, page = ask(server, "/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert headers["Cache-Control"] == "no-store"
    for text in ("running", "0.8125", "<svg", "Kenya", "4 / 9", "8 of 8", "privacy guarantee"):
        assert text in page
    assert not re.search(r"(src|href)=\"?(https?:)?//", page)


def test_it_keeps_up_with_the_run(going: Going) -> None:
    going.round(4, 0.8125)
    with serving(going.path) as server:
        first = state(server)
        assert "0.8125" in first["blocks"]["numbers"] and first["report"] is None
        line = to_line(Metric("gpo", 5, "eval", "<i>Kenya", HEADLINE, 0.4375, 1.0))
        going.write(line[:40])
        assert state(server)["blocks"]["groups"] == first["blocks"]["groups"]
        going.write(line[40:] + "\n")
        second = state(server)
        assert "0.4375" in second["blocks"]["groups"] and "&lt;i&gt;Kenya" in second["blocks"]["groups"]
        going.round(5, 0.8765)
        third = state(server)
        assert "0.8765" in third["blocks"]["numbers"] and "5 / 9" in third["blocks"]["progress"]
        assert third["title"].startswith("running: gpo 5/9")


def test_at_its_end_it_becomes_the_final_report(going: Going) -> None:
    with serving(going.path) as server:
        assert ask(server, "/report")[1]["Location"] == "/"
        going.end()
        assert state(server)["report"] == "/report"
        status, headers, _ = ask(server, "/")
        assert (status, headers["Location"]) == (302, "/report")
        status, _, page = ask(server, "/report")
        assert (status, page) == (200, (going.path / "report.html").read_text())


def test_a_run_that_is_resumed_has_no_final_report_yet_and_its_lost_rounds_are_forgotten(going: Going) -> None:
    going.round(8, 0.9375)
    going.end()
    with serving(going.path) as server:
        assert state(server)["report"] == "/report"
        os.utime(going.path / "summary.json", (1, 1))
        lines = (going.path / "metrics.jsonl").read_text().splitlines(keepends=True)
        (going.path / "new").write_text("".join(lines[:-1]))
        (going.path / "new").rename(going.path / "metrics.jsonl")
        Going.__init__(going, going.path)
        going.round(4, 0.6875)
        found = state(server)
    assert found["report"] is None
    assert "0.6875" in found["blocks"]["charts"] and "0.9375" not in json.dumps(found)


def test_a_dead_run_says_how_to_go_on(going: Going) -> None:
    going.round(4, 0.5)
    content = json.loads((going.path / "status.json").read_text())
    content["writer"] |= {"pid": 2**22 + 1}
    (going.path / "status.json").write_text(json.dumps(content))
    place = going.path / "checkpoints" / "newest"
    place.mkdir(parents=True)
    (place / "checkpoint.json").write_text('{"phase": 0, "round": 3}')
    with serving(going.path) as server:
        found = state(server)
    assert "fedalign run resume=" in found["blocks"]["trouble"] and found["report"] is None


@pytest.mark.slow
def test_a_hundred_thousand_lines_stall_nothing(going: Going) -> None:
    lines = (to_line(Metric("gpo", n // 100, "eval", f"g{n % 100}", HEADLINE, 0.5, 1.0)) for n in range(100_000))
    going.write("\n".join(lines) + "\n")
    going.round(1000, 0.8125)
    took, answers = [], 0
    with serving(going.path) as server:
        more = True
        while more:
            began = time.process_time()
            found = state(server)
            took.append(time.process_time() - began)
            more, answers = found["more"], answers + 1
        began = time.process_time()
        state(server)
        last = time.process_time() - began
    assert "0.8125" in found["blocks"]["numbers"]
    assert answers > 5 and max(took) < 1.0 and last < 0.2


@pytest.mark.parametrize(
    "path",
    ["/config.yaml", "/../config.yaml", "/report/../config.yaml", "/%2e%2e/config.yaml", "//etc/passwd", "/report/",
     "/state.json/x", "/..\\config.yaml", "/checkpoints", "*"],
)  # fmt: skip
def test_only_its_own_paths_are_there(going: Going, path: str) -> None:
    with serving(going.path) as server:
        status, _, content = ask(server, path)
    assert (status, content) == (404, "there is no such page\n")


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1", "localhost:1", "127.0.0.1.evil.example:{port}", "", "0:{port}"]
)
def test_it_answers_only_to_its_own_name(going: Going, host: str) -> None:
    with serving(going.path) as server:
        assert ask(server, "/state.json", Host=f"localhost:{server.server_port}")[0] == 200
        for path in ("/", "/live.js", "/state.json", "/report", "/config.yaml"):
            status, _, content = ask(server, path, Host=host.format(port=server.server_port))
            assert status == 403 and "pluralllm" not in content
        raw = b"GET / HTTP/1.1\r\nHost: localhost:%d\r\nHost: evil\r\n\r\n" % server.server_port
        assert b" 403 " in talk(server, raw)
        assert b" 403 " in talk(server, b"GET / HTTP/1.0\r\n\r\n")


def talk(server: ReportServer, raw: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as connection:
        connection.sendall(raw)
        return connection.recv(4096)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_written(going: Going, method: str) -> None:
    before = {path: path.read_bytes() for path in going.path.rglob("*") if path.is_file()}
    with serving(going.path) as server:
        assert ask(server, "/", method)[0] == 501
        assert ask(server, "/", "HEAD")[2] == ""
        ask(server, "/")
    assert {path: path.read_bytes() for path in going.path.rglob("*") if path.is_file()} == before


def test_names_are_text_wherever_they_stand(make_run: Callable[..., Path]) -> None:
    evil_settings = {"method.name": EVIL, "data.name": EVIL}
    going = Going(make_run(EVIL.replace("/", ""), groups=(EVIL, "b"), settings=evil_settings))
    going.status.run_started([PhasePlan(EVIL, 3)], None)
    metrics = [Metric(EVIL, 1, "eval", EVIL, f"test/{EVIL}", 0.5, 1.0), Metric(EVIL, 1, "eval", None, EVIL, 0.5, 1.0)]
    metrics.append(Metric(EVIL, 1, "server", None, "clients_failed", 2.0, 1.0))
    going.write("".join(to_line(metric) + "\n" for metric in metrics))
    going.status.round_ended(RoundReport(EVIL, 1, 8, 2, 1.0, tuple(metrics)))
    going.status._beat = replace(
        going.status._beat, writer=replace(going.status._beat.writer, host=EVIL, pid=2**22 + 1)
    )
    going.status._write()
    os.utime(going.path / "status.json", (1, 1))
    with serving(going.path) as server:
        _, headers, page = ask(server, "/")
        found = state(server)
    for text in (page, *found["blocks"].values()):
        assert "<img" not in text
    assert page.count("&lt;img") > 8
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self';") and "frame-ancestors 'none'" in policy


def test_it_listens_on_loopback_alone(going: Going) -> None:
    with ReportServer(going.path, 0) as server:
        assert server.server_address[0] == "127.0.0.1"
        assert server.url == f"http://127.0.0.1:{server.server_port}/"
        with pytest.raises(UserError, match=rf"--port={server.server_port}: cannot be listened on .*choose another"):
            ReportServer(going.path, server.server_port)
    with pytest.raises(UserError, match="--port=70000: cannot be listened on"):
        ReportServer(going.path, 70000)


def test_a_broken_file_is_a_line_and_not_the_end(going: Going) -> None:
    with serving(going.path) as server:
        whole = (going.path / "status.json").read_text()
        (going.path / "status.json").write_text("{")
        status, _, content = ask(server, "/state.json")
        assert status == 500 and content.count("\n") == 1 and "status.json" in content
        (going.path / "status.json").write_text(whole)
        assert ask(server, "/state.json")[0] == 200


def test_what_is_no_run_is_not_served(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run directory"):
        ReportServer(tmp_path, 0)


@pytest.mark.slow
def test_ctrl_c_ends_it_at_once(going: Going) -> None:
    command = [sys.executable, "-m", "fedalign.cli", "report", "--serve", str(going.path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert "http://127.0.0.1:" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 130


def browse(url: str, profile: Path) -> tuple[str, list[str]]:
    """Return the page as it stands after its scripts have run for a while, and what they wrote to the console."""
    assert BROWSER is not None
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions",
        "--enable-logging=stderr", "--virtual-time-budget=6000", f"--user-data-dir={profile}", "--dump-dom", url,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome")
def test_a_browser_shows_what_came_after_it_had_loaded_the_page(
    going: Going, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, complaints = browse("data:text/html,<script>console.error('heard')</script>", tmp_path / "1")
    assert len(complaints) == 1 and "heard" in complaints[0]

    asked = []
    going.round(4, 0.8125)
    with serving(going.path) as server:
        answer = server.answers["/state.json"]

        def goes_on() -> Any:
            asked.append(0)
            if len(asked) == 2:
                going.round(5, 0.4321)
                going.write(to_line(Metric("gpo", 5, "eval", EVIL, HEADLINE, 0.1234, 1.0)) + "\n")
            return answer()

        server.answers["/state.json"] = goes_on
        document, complaints = browse(server.url, tmp_path / "2")
        assert len(asked) > 2
        assert "0.4321" in document and "5 / 9" in document and "0.1234" in document
        assert "&lt;img" in document and "<img" not in document
        assert '<p id="lost" hidden' in document
        assert complaints == []

        going.end()
        document, complaints = browse(server.url, tmp_path / "3")
        assert "Time and traffic" in document and complaints == []
