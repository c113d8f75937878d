"""Configurations that tests share: composing one takes longer than most of what tests do with it."""

from __future__ import annotations

import functools
from typing import Any

from fedalign.config import RunConfig, parse, resolve


@functools.cache
def composed(*overrides: str) -> dict[str, Any]:
    """Return the values under some overrides; the same ones for all that ask, who must not change them."""
    return resolve(overrides)


@functools.cache
def configured(*overrides: str) -> RunConfig:
    """Return the configuration under some overrides; the same one for all that ask."""
    return parse(composed(*overrides))
