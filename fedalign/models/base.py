"""What the ``model`` config group holds: settings that build a network and do nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import nn


class ModelSpec(ABC):
    """A network's settings; one subclass a network, a frozen dataclass."""

    @abstractmethod
    def build(self, features: int, extra: int) -> nn.Module:
        """Return a fresh network for ``features`` encoder features and ``extra`` additional inputs a token."""
