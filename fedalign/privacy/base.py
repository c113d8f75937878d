"""What the ``privacy`` config group holds: the guarantee of a run, as it is reported."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any


class Privacy(ABC):
    """A privacy setting; one subclass a kind of guarantee, a frozen dataclass of its settings."""

    @abstractmethod
    def guarantee(self) -> dict[str, Any] | None:
        """Return the guarantee as ``summary.json`` states it, or None where there is none."""


@dataclass(frozen=True)
class NoPrivacy(Privacy):
    """No guarantee: whoever sees the broadcast states may learn about the clients' data."""

    def guarantee(self) -> dict[str, Any] | None:
        """Return None."""
        return None
