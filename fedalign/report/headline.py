"""Which metric a run is first asked about, when its method is not there to say."""

from __future__ import annotations

from collections.abc import Iterable

HEADLINES = ("alignment_score", "accuracy", "reward", "win_rate", "regret_worst", "type_accuracy")
"""In the order of preference."""


def default_headline(names: Iterable[str]) -> str:
    """Return the first of ``HEADLINES`` that was measured, on unseen groups if there were any."""
    found = list(names)
    for stem in HEADLINES:
        for population in ("unseen", "test"):
            if f"{population}/{stem}" in found:
                return f"{population}/{stem}"
    return found[0] if found else HEADLINES[0]
