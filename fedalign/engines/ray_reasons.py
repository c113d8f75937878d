"""Why a worker is gone, in one line, out of Ray's long explanations and what the worker itself wrote last."""

from __future__ import annotations

import re
from pathlib import Path

_DETAIL = re.compile(r"Worker exit detail: (.*?)(?: Some common causes| There are some potential|$)", re.MULTILINE)
_FATAL = "Fatal Python error: "
# Ray's own lines: names of the job and the actor, entries of its log, and what Python adds to a fatal error.
_OF_RAY = (":job_id:", ":actor_name:", "[", "Extension modules:")


def reason_of(text: str) -> str:
    """Return the telling line of the text of one of Ray's errors."""
    detail = _DETAIL.search(text)
    if detail:
        return detail[1].strip().rstrip(".")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "Error: " in line]
    return (errors or lines or ["no reason is known"])[-1]


def last_words(log: Path) -> str:
    """Return the last line that a worker wrote to its standard error, or what it died of; empty where neither is known.

    Parameters
    ----------
    log : Path
        May be missing: a worker on another machine has it there.
    """
    if log.suffix != ".err" or not log.is_file():
        return ""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    fatal = [line for line in lines if line.startswith(_FATAL)]
    own = [line for line in lines if line and not line.startswith(_OF_RAY)]
    return (fatal or own or [""])[-1]
