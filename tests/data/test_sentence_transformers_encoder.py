"""Sentence-transformers models as encoders, on the offline MiniLM folder, which is such a model."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedalign.data.encoders import minilm
from fedalign.data.schema import Question
from fedalign.errors import UserError

Make = Callable[..., Any]


@pytest.fixture
def folder() -> str:
    pytest.importorskip("sentence_transformers", reason="the extra 'encoders' is not installed")
    if importlib.util.find_spec(minilm.PACKAGE) is None:
        pytest.skip("the extra 'offline' is not installed")
    return str(minilm.checked_folder())


def test_it_keeps_the_order_and_agrees_with_minilm(make: Make, folder: str) -> None:
    texts = ["A longer sentence about the weather.", "Short.", "Do you trust the government?"]
    done: list[int] = []
    encoder = make("encoder/sentence_transformers", model=folder, batch_size=2)
    vectors = encoder.encode(texts, done.append)
    assert vectors.dtype == np.float32 and vectors.shape == (3, encoder.dim) == (3, 384)
    assert sum(done) == 3
    np.testing.assert_allclose(vectors, make("encoder/minilm").encode(texts, lambda n: None), atol=1e-5)


def test_fingerprint_and_texts(make: Make, folder: str) -> None:
    encoder = make("encoder/sentence_transformers", model=folder)
    assert encoder.fingerprint != make("encoder/minilm").fingerprint
    assert encoder.fingerprint == make("encoder/sentence_transformers", model=folder, batch_size=3).fingerprint
    assert encoder.texts(Question("Q?", ("x", "y"))) == ["Q? x", "Q? y"]


def test_an_unknown_device_ends_in_one_line(make: Make, folder: str) -> None:
    with pytest.raises(UserError, match="cannot be loaded on abacus") as error:
        _ = make("encoder/sentence_transformers", model=folder, device="abacus").dim
    assert "\n" not in str(error.value)


def test_a_missing_model_is_refused(make: Make) -> None:
    with pytest.raises(UserError, match=r"encoder.model=./absent: no such folder"):
        _ = make("encoder/sentence_transformers", model="./absent").fingerprint


def test_without_the_package_it_says_what_to_install(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec

    def hide(name: str, package: str | None = None) -> Any:
        return None if name == "sentence_transformers" else find_spec(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", hide)
    with pytest.raises(UserError, match=r"pip install 'fedalign\[encoders\]'"):
        _ = make("encoder/sentence_transformers", model="./absent").dim
