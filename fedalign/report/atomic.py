"""Whole files or none: text and JSON written beside the target and renamed onto it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_bytes_atomic(path: Path, content: bytes) -> None:
    """Write ``content`` so that a reader, or a crash, sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text_atomic(path: Path, content: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes_atomic(path, content.encode("utf-8"))


def write_json_atomic(path: Path, content: Any) -> None:
    """Write indented JSON atomically.

    Raises
    ------
    ValueError
        If a number is NaN or infinite; nothing is written then.
    """
    write_text_atomic(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
