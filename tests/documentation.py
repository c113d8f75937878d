"""Reads from a Markdown page what it tells a reader to do: the files to make and the commands to type."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

COMMANDS = ("fedalign", "scripts/run", "scripts/test")
"""Programs that a ```bash block may call; anything else belongs into a ```console block, which is not run."""

_FENCE = re.compile(r"^(?P<ticks>`{3,})(?P<info>.*)$")
_SLOW = re.compile(r"^<!--\s*test:\s*slow\s*-->$")
_MARKER = re.compile(r"^<!--\s*test:")
# What a shell would act on: it is refused, because the test that runs the command is no shell.
_SHELL = re.compile(r"[|&;<>$`*?~]")


class PageError(Exception):
    """A page that cannot be tested as it is written; the message names the line."""


@dataclass(frozen=True)
class File:
    """A block ```<language> file=<name>, which the reader saves where the commands run."""

    name: str
    content: str
    slow: bool


@dataclass(frozen=True)
class Command:
    """One command of a ```bash block, split into words as a shell splits it."""

    words: tuple[str, ...]
    slow: bool


def read_page(text: str) -> list[File | Command]:
    """Return the files and commands of a page in reading order.

    A line ``<!-- test: slow -->`` before a block marks all of it as slow.

    Raises
    ------
    PageError
        If a fence stays open or is indented, a marker is unknown or marks nothing, or a ``bash`` block
        holds a line that calls none of ``COMMANDS`` or that needs a shell.
    """
    steps: list[File | Command] = []
    slow_from: int | None = None
    lines = enumerate(text.splitlines(), start=1)
    for number, line in lines:
        if fence := _FENCE.match(line):
            info = fence["info"].split()
            body = list(_until(lines, fence["ticks"], number))
            steps.extend(_block(info, body, number, slow=slow_from is not None))
            slow_from = None
        elif line.lstrip().startswith(("```bash", "~~~")):
            raise PageError(f"line {number}: write the block with ``` and without indentation")
        elif _SLOW.match(line):
            slow_from = number
        elif _MARKER.match(line):
            raise PageError(f"line {number}: unknown marker {line!r}; known: <!-- test: slow -->")
        elif slow_from is not None and line.strip():
            raise PageError(f"line {slow_from}: the marker must stand right before a fenced block")
    if slow_from is not None:
        raise PageError(f"line {slow_from}: the marker marks no block")
    return steps


def _until(lines: Iterator[tuple[int, str]], ticks: str, opened: int) -> Iterator[str]:
    for _, line in lines:
        if line.strip() == ticks:
            return
        yield line
    raise PageError(f"line {opened}: the block is never closed")


def _block(info: list[str], body: list[str], number: int, slow: bool) -> Iterator[File | Command]:
    language = info[0] if info else ""
    names = [word.removeprefix("file=") for word in info[1:] if word.startswith("file=")]
    if names:
        yield File(names[0], "\n".join(body) + "\n", slow)
    elif language == "bash":
        yield from (Command(words, slow) for words in _commands(body, number))
    elif slow:
        raise PageError(f"line {number}: a {language or 'plain'} block is never run, so it cannot be slow")


def _commands(body: list[str], number: int) -> Iterator[tuple[str, ...]]:
    joined = "\n".join(body).replace("\\\n", " ")
    for line in joined.splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if words[0] not in COMMANDS:
            raise PageError(f"block at line {number}: {words[0]!r} is not run by a test; put it in a ```console block")
        if _SHELL.search(re.sub(r"'[^']*'", "", line.partition(" #")[0])):
            raise PageError(f"block at line {number}: {line.strip()!r} needs a shell; write it without")
        yield tuple(words)
