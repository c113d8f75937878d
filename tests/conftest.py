"""Settings that all tests share: no telemetry, property tests that repeat, no plots, real data or a skip."""

from __future__ import annotations

import base64
import copy
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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

BLANK = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mP4DwABAQEAHLCMmQAAAABJRU5ErkJggg==")
"""A PNG of one white pixel."""


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the tests' embeddings out of the user's cache, and the user's out of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDALIGN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def configs_read_once() -> Iterator[None]:
    """Parse each YAML once a session: the tests compose a thousand configurations out of the same few files."""
    from hydra._internal.core_plugins.file_config_source import FileConfigSource
    from hydra._internal.core_plugins.importlib_resources_config_source import ImportlibResourcesConfigSource

    def reads_once(read: Callable[..., Any]) -> Callable[..., Any]:
        known: dict[tuple[str, str], Any] = {}

        @functools.wraps(read)
        def load_config(source: Any, config_path: str) -> Any:
            key = (source.path, config_path)
            if key not in known:
                known[key] = read(source, config_path)
            # Composing changes what it is given.
            return copy.deepcopy(known[key])

        return load_config

    with pytest.MonkeyPatch.context() as patch:
        for kind in (FileConfigSource, ImportlibResourcesConfigSource):
            patch.setattr(kind, "load_config", reads_once(kind.load_config))
        yield


@pytest.fixture
def real_plots() -> None:
    """Have plots drawn in the test that asks for it."""


@pytest.fixture(autouse=True)
def no_plots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave plots out where nothing looks at them: to draw them takes longer than all else of a tiny run."""
    if "real_plots" not in request.fixturenames:
        for plots in ("run_plots", "latent_plots"):
            monkeypatch.setattr(f"fedalign.report.render.{plots}", lambda *arguments: {})
        monkeypatch.setattr("fedalign.report.canvas.png", lambda figure: BLANK)


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
