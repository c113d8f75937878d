"""What a node opens of what a server names: its own data, models that it allows, and hub names; no other local path."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from fedalign.errors import UserError

PATHS = frozenset({"path", "model", "models", "paths", "pretrained", "prompts", "questions", "run", "output"})
"""Keys of a configuration whose values, or values below, are opened as files or folders."""

_DATA = ("data", "source")


def confine(content: Mapping[str, Any], data_path: str, allowed: Sequence[Path]) -> dict[str, Any]:
    """Return a run's configuration as a node with data of its own follows it.

    Parameters
    ----------
    content : mapping
        The resolved configuration, as a server sent it.
    data_path : str
        The node's data, which stand in for every path of the run's data.
    allowed : sequence of Path
        Directories whose contents a configuration may name.

    Raises
    ------
    UserError
        If it names any other local path.
    """
    data = content.get("data")
    if not isinstance(data, Mapping):
        raise UserError("data: the configuration names no data")
    confined = {**content, "data": _with_path(data, data_path)}
    _check({key: value for key, value in confined.items() if key != "data"}, "", False, allowed)
    _check(_without_path(confined["data"]), "data", False, allowed)
    return confined


def _with_path(data: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Return a node of data that reads ``path``, and so do the data that it is made of."""
    inner = {
        key: _with_path(value, path) for key, value in data.items() if isinstance(value, Mapping) and "path" in value
    }
    return {**data, **inner, "path": path}


def _without_path(data: Mapping[str, Any]) -> dict[str, Any]:
    shown = {key: _without_path(value) if isinstance(value, Mapping) else value for key, value in data.items()}
    return {key: value for key, value in shown.items() if key != "path"}


def _check(value: Any, key: str, opened: bool, allowed: Sequence[Path]) -> None:
    """Refuse local paths in a part of a configuration; ``opened`` tells that its strings are opened."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            _check(part, f"{key}.{name}" if key else str(name), opened or name in PATHS, allowed)
    elif isinstance(value, list):
        for part in value:
            _check(part, key, opened, allowed)
    elif isinstance(value, str) and _is_local(value, opened) and not _inside(value, allowed):
        raise UserError(
            f"{key}={value[:80]!r} is a local path, and this node opens none that a run names but what is under its "
            "model-path; put it there, or name a model of the hub"
        )


def _is_local(value: str, opened: bool) -> bool:
    """Tell whether a string may be a file or folder of this machine, rather than a hub name or any other word."""
    if "\0" in value:
        return True
    parts = PureWindowsPath(value).parts
    if value.startswith(("/", "~", "./", "../", ".\\", "..\\")) or ".." in parts or PureWindowsPath(value).drive:
        return opened or len(value.split()) == 1
    return opened and (value.count("/") > 1 or value.startswith(".") or _exists(value))


def _exists(value: str) -> bool:
    try:
        return bool(value) and Path(value).exists()
    except (OSError, ValueError):
        return True


def _inside(value: str, allowed: Sequence[Path]) -> bool:
    try:
        place = Path(os.path.realpath(Path(value).expanduser()))
    except (OSError, ValueError, RuntimeError):
        return False
    return any(place.is_relative_to(root.resolve()) for root in allowed)
