"""A site's clients under names of its own, where the data would give several sites' clients the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fedalign.data.federated import ClientInfo, FederatedData


class PrefixedData(FederatedData):
    """Data whose clients' names begin with a prefix; shards are the same but for the name.

    Parameters
    ----------
    inner : FederatedData
        Shards are dataclasses with a field ``client``.
    prefix : str
    """

    def __init__(self, inner: FederatedData, prefix: str) -> None:
        self._inner, self._prefix = inner, prefix
        self.dropped, self.questionnaire, self.questions = inner.dropped, inner.questionnaire, inner.questions

    @property
    def clients(self) -> Sequence[ClientInfo]:
        """All clients, training clients first."""
        return [replace(client, name=f"{self._prefix}{client.name}") for client in self._inner.clients]

    def shard(self, client: str) -> Any:
        """Return a client's shard, which has its prefixed name."""
        return replace(self._inner.shard(client.removeprefix(self._prefix)), client=client)
