"""What the ``model`` config group holds: settings that build a network and do nothing else."""

from __future__ import annotations

from abc import ABC


class ModelSpec(ABC):  # noqa: B024 - what a network is built from differs; the method that uses it names the subclass
    """A network's settings; one subclass a network, a frozen dataclass with a method ``build``."""
