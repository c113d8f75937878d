"""How numbers are written for people: scores, bytes and durations."""

from __future__ import annotations

import math


def number(value: float) -> str:
    """Return a count in full, and a measured value with as many digits as can matter."""
    if isinstance(value, int):
        return f"{value:,}"
    if value == 0 or 0.001 <= abs(value) < 100:
        return f"{value:.4f}"
    return f"{value:,.1f}" if 100 <= abs(value) < 1e7 else f"{value:.3g}"


def decimals(mean: float, half_width: float) -> int:
    """Return how many decimals a mean and its interval share: enough for two digits of the interval."""
    if max(abs(mean), half_width) >= 100:
        return 1
    needed = 4 if half_width == 0 else 1 - math.floor(math.log10(half_width))
    return min(6, max(4, needed))


def byte_count(count: int) -> str:
    """Return a size in bytes, kB, MB, GB or TB (powers of 1000)."""
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def duration(seconds: float) -> str:
    """Return a wall time with the unit that suits it."""
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
