"""``fedalign status``: how runs stand, once or until they end, for people or as JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from fedalign.errors import RunFailed
from fedalign.report.run_status import RunStatus, newest_run, read_status
from fedalign.report.status_view import details, line, show_details

OUTPUTS = Path("outputs")
"""Where runs lie that nobody gave a place."""
REFRESH_S = 1.0


def show_status(console: Console, directories: Sequence[Path], *, watch: bool, as_json: bool) -> None:
    """Print how runs stand.

    Parameters
    ----------
    console : rich.console.Console
    directories : sequence of Path
        None: the newest run under ``outputs/``. Several are given a line each.
    watch : bool
        Go on until all have ended.
    as_json : bool
        An object for one directory, a list for several; with ``watch`` a line each time that something has changed.

    Raises
    ------
    UserError
        If a directory is no run.
    RunFailed
        If a run that was watched ended otherwise than well.
    """
    chosen = list(directories) or [newest_run(OUTPUTS)]
    if watch:
        _watch(console, chosen, as_json)
        return
    found = [read_status(path) for path in chosen]
    if as_json:
        console.file.write(_json(found, indent=2) + "\n")
    elif len(found) == 1:
        show_details(console, found[0])
    else:
        for status in found:
            _print_line(console, line(status))


def _watch(console: Console, directories: Sequence[Path], as_json: bool) -> None:
    if console.is_terminal and not as_json:
        found = _watch_screen(console, directories)
    else:
        found = _watch_lines(console, directories, as_json)
    bad = [status for status in found if status.state != "completed"]
    if bad:
        raise RunFailed("; ".join(line(status) for status in bad))


def _watch_screen(console: Console, directories: Sequence[Path]) -> list[RunStatus]:
    found = [read_status(path) for path in directories]
    with Live(_screen(found), console=console, auto_refresh=False) as live:
        while not all(status.ended for status in found):
            time.sleep(REFRESH_S)
            found = [read_status(path) for path in directories]
            live.update(_screen(found), refresh=True)
    return found


def _screen(found: Sequence[RunStatus]) -> RenderableType:
    return details(found[0]) if len(found) == 1 else Group(*(Text(line(status)) for status in found))


def _watch_lines(console: Console, directories: Sequence[Path], as_json: bool) -> list[RunStatus]:
    told: dict[Path, Any] = {}
    while True:
        found = [read_status(path) for path in directories]
        for status in found:
            if told.get(status.directory) != _news(status):
                told[status.directory] = _news(status)
                _print_line(console, _json([status], indent=None) if as_json else line(status))
        if all(status.ended for status in found):
            return found
        time.sleep(REFRESH_S)


def _news(status: RunStatus) -> tuple[Any, ...]:
    """Return what is worth another line; time passes anyway."""
    beat = status.heartbeat
    return status.state, None if beat is None else (beat.phase, beat.round), status.epsilon


def _print_line(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, markup=False, highlight=False, emoji=False)


def _json(found: Sequence[RunStatus], *, indent: int | None) -> str:
    content = [status.to_json() for status in found]
    return json.dumps(content[0] if len(content) == 1 else content, ensure_ascii=False, allow_nan=False, indent=indent)
