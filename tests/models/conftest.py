"""What the tests of language models share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.language_models import KINDS, language_model


@pytest.fixture(scope="session", params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of causal models, one after another: two random architectures and a trained model."""
    return language_model(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random GPT-2."""
    return language_model("gpt2", tmp_path_factory.mktemp("gpt2"))
