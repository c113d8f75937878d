"""Finds the table of a split in a local folder, under any of the names that it may have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedalign.data.table import SUFFIXES
from fedalign.errors import UserError


def table_in(folder: Path, names: Sequence[str]) -> Path:
    """Return the first table that is there.

    Parameters
    ----------
    folder : Path
    names : sequence of str
        Paths inside the folder, with or without one of the endings that ``read_table`` knows.

    Raises
    ------
    UserError
        If the folder does not exist or holds none of them.
    """
    if not folder.is_dir():
        raise UserError(f"data.path={folder}: no such folder; give the folder with {names[0]}{SUFFIXES[1]}")
    candidates = [folder / f"{name}{suffix}" for name in names for suffix in ("", *SUFFIXES)]
    for path in candidates:
        if path.is_file():
            return path
    raise UserError(
        f"data.path={folder}: no table {names[0]!r} in it; it must be one of {names[0]}{{{','.join(SUFFIXES)}}}"
    )
