"""Settings that all tests share: no telemetry, property tests that repeat, real data or a skip."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

# Before flwr, ray or a hub client is imported by any test.
for name, value in {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
    "MPLBACKEND": "agg",
    "OMP_NUM_THREADS": "1",
}.items():
    os.environ.setdefault(name, value)

# derandomize: a failure on one machine is a failure on all; deadline: a busy machine is no failure.
hypothesis.settings.register_profile("fedalign", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("fedalign")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the tests' embeddings out of the user's cache, and the user's out of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDALIGN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def root() -> Path:
    """Root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Give the path of a file among the real data sets, by its path there; skips where it is absent."""
    folder = Path(os.environ.get("FEDALIGN_TEST_DATA", ROOT.parent / "shared" / "data"))

    def find(relative: str) -> Path:
        path = folder / relative
        if not path.is_file():
            pytest.skip(f"no {relative} in {folder}; set FEDALIGN_TEST_DATA to the folder of the real data sets")
        return path

    return find
