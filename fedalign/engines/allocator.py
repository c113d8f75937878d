"""Freed memory stays with the process: a client's tensors are as large as those of the client before it.

By default glibc gives large pieces back to the system as soon as they are free, and the system hands every page out
anew, zeroed, at about a microsecond each: up to a fifth of an update of a model of a million parameters.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable

# Numbers of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3

KEPT_BYTES = 256 * 2**20
"""What may lie free at the end of the heap before it is given back."""

_LARGEST_IN_HEAP = 32 * 2**20
"""The most that glibc takes for its threshold; what is larger it asks the system for, each time."""

_CHOSEN_BY_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory for whoever asks next, for the rest of the process.

    Returns
    -------
    bool
        False, and nothing is changed, where the library is not glibc, or the user has set its thresholds.
    """
    mallopt = _mallopt()
    if mallopt is None or any(name in os.environ for name in _CHOSEN_BY_USER):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_IN_HEAP)) and bool(mallopt(_TRIM_THRESHOLD, KEPT_BYTES))


def _mallopt() -> Callable[[int, int], int] | None:
    """Return glibc's function; None where there is none."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library.mallopt if hasattr(library, "gnu_get_libc_version") else None
