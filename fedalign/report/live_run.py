"""A run as a page's server sees it: read piece by piece, and turned into blocks when something is new."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from fedalign.report.headline import default_headline
from fedalign.report.live_metrics import LiveMetrics
from fedalign.report.live_page import live_blocks, live_page, live_title
from fedalign.report.metrics_tail import MetricsTail
from fedalign.report.run_directory import RunDirectory
from fedalign.report.run_status import assess


@dataclass(frozen=True)
class View:
    """What there is to see now.

    Parameters
    ----------
    title : str
    blocks : dict from id to HTML
    more : bool
        Whether there is more to read at once.
    over : bool
        Whether the run has ended and its final report is there.
    """

    title: str
    blocks: dict[str, str]
    more: bool
    over: bool

    @property
    def page(self) -> str:
        """The whole page."""
        return live_page(self.title, self.blocks)


class LiveRun:
    """Follows one run; may be asked by several threads.

    Parameters
    ----------
    path : Path

    Raises
    ------
    UserError
        If ``path`` is no run directory, or its configuration is broken.
    """

    def __init__(self, path: Path) -> None:
        self._directory = RunDirectory.open(path)
        self._config = self._directory.read_config()
        self._name = path.resolve().name
        self._tail = MetricsTail(self._directory.metrics_file)
        self._metrics = LiveMetrics()
        self._lock = threading.Lock()

    def look(self) -> View:
        """Read on, a piece of the metrics at most, and return what there is to see.

        Raises
        ------
        UserError
            If a file of the run is broken.
        """
        with self._lock:
            piece = self._tail.read()
            if piece.again:
                self._metrics.clear()
            self._metrics.add(piece.metrics)
            status = assess(self._directory, self._config, lambda: self._metrics.last)
            beat = status.heartbeat
            headline = default_headline(self._metrics.last) if beat is None else beat.headline
            blocks = live_blocks(status, self._metrics, self._name, headline)
            over = status.state in ("completed", "failed") and self._directory.report_file.exists()
            return View(live_title(status), blocks, piece.more, over)

    def read_report(self) -> bytes:
        """Return the final report as it is."""
        return self._directory.report_file.read_bytes()
