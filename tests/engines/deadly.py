"""A site on which clients kill the process that works for them, as often as there are files that say so."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedalign.data.federated import ClientInfo, FederatedData
from fedalign.federation.site import Site
from fedalign.site import open_site

ALWAYS = "always"
FULL = "full"
"""Ends a file's name that keeps the next process from opening the site, once."""


class DeadlyData(FederatedData):
    """Hands shards out, but for ``<client>-<number>`` in a directory: each of these files kills one process.

    Parameters
    ----------
    data : FederatedData
    directory : str
    spared : int
        A process that nothing kills.
    """

    def __init__(self, data: FederatedData, directory: str, spared: int) -> None:
        self._data, self._directory, self._spared = data, Path(directory), spared
        self.dropped, self.questionnaire, self.questions = data.dropped, data.questionnaire, data.questions

    @property
    def clients(self) -> list[ClientInfo]:
        return list(self._data.clients)

    def shard(self, client: str) -> Any:
        if os.getpid() != self._spared:
            for path in self._directory.glob(f"{client}-*"):
                if not path.name.endswith(ALWAYS):
                    path.unlink()
                if path.name.endswith(FULL):
                    (self._directory / FULL).touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return self._data.shard(client)


def deadly_site(directory: str, spared: int, config: str, node_config: Mapping[str, Any]) -> Site:
    """Open the site that is configured, with such data."""
    full = Path(directory) / FULL
    if os.getpid() != spared and full.exists():
        full.unlink()
        raise MemoryError("the GPU is full")
    site = open_site(config, node_config)
    return replace(site, data=DeadlyData(site.data, directory, spared))


def broken_site(spared: int, config: str, node_config: Mapping[str, Any]) -> Site:
    """Open the site that is configured in one process, and no other."""
    if os.getpid() != spared:
        raise FileNotFoundError("answers.jsonl is not on this machine")
    return open_site(config, node_config)
