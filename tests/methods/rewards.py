"""What the tests of rewards share: shipped settings, and texts that a model may write on a bad day."""

from __future__ import annotations

from typing import Any

import yaml

from fedalign.config import conf_directory

STRANGE = [
    "",
    " ",
    "\n\n\t",
    "!!!",
    "good " * 300,
    "the film was good",
    "the film was bad and dull",
    "Großartig, schön!",
    "映画は良かった",
    "\u202eright to left\u0000\ufffd",
    "🎬👍🏽 love it 💔",
]
"""Empty, blank, endless, foreign and broken texts."""


def shipped(name: str) -> dict[str, Any]:
    """Return the settings of a shipped reward."""
    settings: dict[str, Any] = yaml.safe_load((conf_directory() / "method" / "reward" / f"{name}.yaml").read_text())
    return settings
