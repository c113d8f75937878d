"""The vectorised engine: its settings reach the node, and each of them changes how clients are trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedalign.engines.vectorised import Vectorised
from fedalign.methods.pluralllm import GPOPhase
from fedalign.run import start
from tests.configs import configured
from tests.tiny import TINY, use_cache


def test_the_shipped_engine_hosts_everybody_on_one_node() -> None:
    engine = configured("engine=vectorised").engine
    assert isinstance(engine, Vectorised)
    assert [engine.nodes(clients) for clients in (1, 10_000)] == [1, 1]


@pytest.mark.parametrize(
    ("change", "sizes"),
    [
        ("engine.choose=stack", [3, 3]),
        ("engine.choose=loop", []),
        ("engine.cohort=2", [2]),
        # Of three clients two are tried alone, and one is no stack, so that the first is in the second round.
        ("engine.choose=auto", [3]),
        ("engine.largest=10", []),
    ],
)
def test_every_option_changes_which_clients_are_trained_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, sizes: list[int]
) -> None:
    use_cache(tmp_path, monkeypatch)
    found: list[int] = []
    local_many = GPOPhase.local_many

    def watched(phase: GPOPhase, state: Any, shards: Any, *more: Any) -> Any:
        found.append(len(shards))
        return local_many(phase, state, shards, *more)

    monkeypatch.setattr(GPOPhase, "local_many", watched)
    more = ["engine=vectorised", "federation.rounds=2", "method.prior=none", change]
    start([*(o for o in TINY if "rounds" not in o), *more, f"output={tmp_path / 'run'}"])
    assert found == sizes
