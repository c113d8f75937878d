"""A node's data that note how long clients wait for them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from fedalign.data.federated import ClientInfo, FederatedData


class TimedData(FederatedData):
    """Other data, and the seconds that were spent in getting shards of them.

    Parameters
    ----------
    data : FederatedData

    Attributes
    ----------
    seconds : float
    """

    def __init__(self, data: FederatedData) -> None:
        self._data, self.seconds = data, 0.0
        self.dropped, self.questionnaire, self.questions = data.dropped, data.questionnaire, data.questions

    @property
    def clients(self) -> Sequence[ClientInfo]:
        """All clients."""
        return self._data.clients

    def shard(self, client: str) -> Any:
        """Return a client's shard."""
        start = time.perf_counter()
        found = self._data.shard(client)
        self.seconds += time.perf_counter() - start
        return found
