"""Hashed features: the same everywhere, unit length, and inner products that count shared words."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedalign.data.encoders.hashing import HashingEncoder
from fedalign.data.schema import Question
from fedalign.errors import UserError

TEMPLATE = "{question} {option}"


def encode(*texts: str, size: int = 4096, word_pairs: bool = False) -> np.ndarray[Any, Any]:
    return HashingEncoder(TEMPLATE, size, word_pairs).encode(texts, lambda n: None)


def test_inner_products_count_shared_words() -> None:
    # Without a collision (as here, in 4096 buckets) the cosine is that of the word counts themselves.
    vectors = encode("red green blue", "red green", "black", "red red")
    expected = [1, 2 / np.sqrt(6), 0, 1 / np.sqrt(3)]
    np.testing.assert_allclose(vectors @ vectors[0], expected, atol=1e-6)


def test_words_are_split_at_punctuation_and_case_does_not_count() -> None:
    vectors = encode("Red, GREEN!", "red green", "gr\u00fcn", "GR\u00dcN")
    np.testing.assert_array_equal(vectors[0], vectors[1])
    np.testing.assert_array_equal(vectors[2], vectors[3])


def test_word_pairs_see_order() -> None:
    for pairs in (False, True):
        one, other = encode("red green blue", "blue green red", word_pairs=pairs)
        assert np.array_equal(one, other) is (not pairs)


@given(st.lists(st.text(max_size=30), max_size=6), st.integers(1, 300), st.booleans())
def test_vectors_have_length_one_or_zero(texts: list[str], size: int, pairs: bool) -> None:
    vectors = encode(*texts, size=size, word_pairs=pairs)
    assert vectors.shape == (len(texts), size)
    assert vectors.dtype == np.float32
    norms = np.linalg.norm(vectors, axis=1)
    assert np.all((np.abs(norms - 1) < 1e-5) | (norms == 0))


@pytest.mark.slow
def test_the_same_in_every_process() -> None:
    program = (
        "from fedalign.data.encoders.hashing import HashingEncoder as H;"
        "print(H('{option}', 16, True).encode(['a b c'], lambda n: None).tolist())"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert seen == {f"{encode('a b c', size=16, word_pairs=True).tolist()}\n"}


def test_the_config_decides(make: Callable[..., Any]) -> None:
    encoder = make("encoder/hashing", size=32, template="{letter}: {option}")
    assert encoder.dim == 32
    assert encoder.texts(Question("Q?", ("x", "y"))) == ["A: x", "B: y"]
    assert encoder.encode(["x"], lambda n: None).shape == (1, 32)
    fingerprints = {make("encoder/hashing", **keys).fingerprint for keys in ({}, {"size": 32}, {"word_pairs": False})}
    assert len(fingerprints) == 3
    with pytest.raises(UserError, match=r"encoder\.template"):
        make("encoder/hashing", template="{question}")


def test_progress_counts_every_text() -> None:
    done: list[int] = []
    HashingEncoder(TEMPLATE, 8, False).encode(["a", "b", "c"], done.append)
    assert sum(done) == 3
