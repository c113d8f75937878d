"""Data that note how long they were waited for, and are otherwise the data themselves."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from fedalign.data.federated import ClientInfo, FederatedData, Role
from fedalign.data.timed import TimedData


class Slow(FederatedData):
    dropped: Mapping[str, int] = {"rule": 2}
    questionnaire: Mapping[str, int] = {"Tea?": 2}

    @property
    def clients(self) -> Sequence[ClientInfo]:
        return [ClientInfo("ada", Role.TRAIN)]

    def shard(self, client: str) -> str:
        time.sleep(0.01)
        return client.upper()


def test_waiting_for_shards_is_counted_and_nothing_else_changes() -> None:
    slow = Slow()
    timed = TimedData(slow)
    assert (timed.clients, timed.dropped, timed.questionnaire) == (slow.clients, slow.dropped, slow.questionnaire)
    assert timed.seconds == 0.0
    assert timed.shard("ada") == "ADA"
    first = timed.seconds
    timed.shard("ada")
    assert timed.seconds > first >= 0.01
