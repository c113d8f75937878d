"""What the ``privacy`` config group holds: the guarantee that a run is to keep, or none."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass


class Privacy(ABC):  # noqa: B024 - says what it is for only
    """A privacy setting; one subclass a kind of guarantee, a frozen dataclass of its settings."""


@dataclass(frozen=True)
class NoPrivacy(Privacy):
    """No guarantee: whoever sees the broadcast states may learn about the clients' data."""
