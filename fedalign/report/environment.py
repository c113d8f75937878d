"""environment.json: on what a run was made, so that its numbers can be traced."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("fedalign", "torch", "flwr", "numpy", "transformers")


def environment(seed: int) -> dict[str, Any]:
    """Return Python, machine, package versions, the source tree's git commit and the seed.

    A package that is not installed has version None; ``git_sha`` is None when the source is not a git
    checkout, and ``git_dirty`` says whether tracked files differ from that commit.
    """
    source = Path(__file__).parent
    sha = git_sha(source)
    return {
        "seed": seed,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "versions": {package: _version(package) for package in PACKAGES},
        "git_sha": sha,
        "git_dirty": None if sha is None else bool(_git(source, "status", "--porcelain", "--untracked-files=no")),
    }


def git_sha(directory: Path) -> str | None:
    """Return the commit checked out in ``directory``, or None.

    A directory whose files git does not track has none: an installed package may well lie inside somebody
    else's checkout, whose commit says nothing about it.
    """
    if not _git(directory, "ls-files", "--", "."):
        return None
    return _git(directory, "rev-parse", "HEAD") or None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(directory: Path, *arguments: str) -> str | None:
    """Return git's output; None when git is missing, slow or unwilling."""
    try:
        result = subprocess.run(
            ["git", "-C", str(directory), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
