"""Rounds of a secure sum in one process, with dropouts where a test wants them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from fedalign.federation.secure.coordinator import Coordinator
from fedalign.federation.secure.party import Party
from fedalign.federation.secure.settings import SecAgg

STAGES = ("advertise", "share", "mask", "unmask")


def stored_and_loaded(party: Party) -> Party:
    return Party.from_bytes(party.to_bytes())


@dataclass
class Round:
    """Drives parties and a coordinator; ``silent[stage]`` names who does not answer in that stage."""

    vectors: Mapping[str, np.ndarray]
    settings: SecAgg
    silent: Mapping[str, Collection[str]] = field(default_factory=dict)
    between: Callable[[Party], Party] = lambda party: party
    round_id: str = "run/phase/1"

    def __post_init__(self) -> None:
        names = list(self.vectors)
        self.coordinator = Coordinator(self.round_id, names, self.settings, len(self.vectors[names[0]]))
        self.parties = {name: Party.create(name, self.round_id, self.settings) for name in names}
        self.sent: dict[str, dict] = {}

    def advertise(self) -> None:
        self.sent["advertise"] = self._ask("advertise", dict.fromkeys(self.vectors, ()), self.coordinator.receive_keys)

    def share(self) -> None:
        requests = {name: (keys,) for name, keys in self.coordinator.neighbourhoods().items()}
        self.sent["share"] = self._ask("share", requests, self.coordinator.receive_shares)

    def mask(self) -> None:
        requests = {name: (inbox, self.vectors[name]) for name, inbox in self.coordinator.inboxes().items()}
        self.sent["mask"] = self._ask("mask", requests, self.coordinator.receive_masked)

    def unmask(self) -> None:
        requests = {name: (request,) for name, request in self.coordinator.unmask_requests().items()}
        self.sent["unmask"] = self._ask("unmask", requests, self.coordinator.receive_unmask)

    def run(self) -> np.ndarray:
        for stage in STAGES:
            getattr(self, stage)()
        return self.coordinator.result()

    def _ask(self, stage: str, requests: Mapping[str, tuple], receive: Callable) -> dict:
        replies = {}
        for name, arguments in requests.items():
            if any(name in self.silent.get(earlier, ()) for earlier in STAGES[: STAGES.index(stage) + 1]):
                continue
            self.parties[name] = self.between(self.parties[name])
            replies[name] = getattr(self.parties[name], stage)(*arguments)
            receive(name, replies[name])
        return replies


def words(parties: int, length: int, seed: int = 0, bits: int = 64) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        f"c{place}": generator.integers(0, 2**bits, length, dtype=np.dtype(f"<u{bits // 8}"))
        for place in range(parties)
    }


def total(vectors: Mapping[str, np.ndarray], names: Collection[str]) -> np.ndarray:
    return np.sum([vectors[name] for name in names], axis=0, dtype=next(iter(vectors.values())).dtype)
