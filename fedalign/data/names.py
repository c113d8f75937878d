"""Nearest valid name for a misspelt one, for error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def suggest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known name nearest to ``name``, or a short list if none is near."""
    names = list(known)
    folded = {candidate.casefold(): candidate for candidate in names}
    near = difflib.get_close_matches(name.casefold(), list(folded), n=1, cutoff=0.6)
    if near:
        return f"; did you mean {folded[near[0]]!r}?"
    shown = ", ".join(repr(candidate) for candidate in names[:8])
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"; known: {shown}{more}" if names else ""
